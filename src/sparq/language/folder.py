"""How a SpeechLM lies on disk.

The folder is a transformers model (``from_pretrained`` reads it) plus ``sparq.json`` and the folders ``vocabulary``,
``codebook`` and ``vocoder``. ``sparq.json`` carries the fingerprints of all of them and of the weights, so that nothing
in the folder can be exchanged for what was not made with the rest. A part that ships with SpARQ may be left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

import sparq.quantization  # noqa: F401 - makes transformers know the simulated models that it reads
from sparq.artifacts import Manifest, fingerprint, new_folder, read_manifest, require_match, write_manifest
from sparq.assets import shipped
from sparq.attention import installed, load_pretrained
from sparq.attention.install import CONFIG_KEY
from sparq.deployment import DeployedModel, DeploymentConfig
from sparq.deployment.config import RECORD
from sparq.deployment.graph import GRAPH, WEIGHTS
from sparq.deployment.in_torch import require_device
from sparq.device import known_device
from sparq.errors import UserError
from sparq.language.vocabulary import Vocabulary, load_vocabulary
from sparq.speech.units import Codebook
from sparq.speech.vocoder import Vocoder

KIND = "speechlm"


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a SpeechLM is made of.

    Attributes:
        model: the transformers causal LM.
        vocabulary: what its ids mean.
        codebook: what its units mean.
        vocoder: what speaks its units, or None.
    """

    model: Any
    vocabulary: Vocabulary
    codebook: Codebook
    vocoder: Vocoder | None


def write_folder(
    folder: Path, parts: Parts, settings: Mapping[str, Any], *, half: bool = False, complete: bool = True
) -> Manifest:
    """Write the folder, whole or not at all.

    Args:
        folder: its name; an older folder of that name is replaced.
        parts: what goes into it.
        settings: further settings, which come back from :func:`read_folder`.
        half: write the model's weights in half precision.
        complete: write every part; otherwise those that ship with SpARQ are left out.

    Raises:
        UserError: the model carries adapters that are not merged, or is deployed and shall be halved.
    """
    model = parts.model
    if hasattr(model, "peft_config"):
        raise UserError(f"{folder}: the model carries adapters; merge them before it is saved")
    deployed = getattr(model.config, RECORD, None)
    if deployed and half:
        raise UserError(f"{folder}: is deployed ({DeploymentConfig(**deployed).name}); its weights stay as they are")
    quantization = None if deployed else getattr(model.config, "quantization_config", None)
    attention = installed(model)
    inputs = {}
    with new_folder(folder) as new:
        with no_progress_bars():
            model.save_pretrained(new, state_dict=_halved(model) if half else None)
        for name in ("vocabulary", "codebook", "vocoder"):
            part: Any = getattr(parts, name)
            if part is not None:
                (new / name).mkdir()
                part.save(new / name)
                inputs[name] = read_manifest(new / name, name).fingerprint
                if not complete and inputs[name] == _fingerprint_of_shipped(name):
                    shutil.rmtree(new / name)
        told = {
            "attention": attention and attention.record(),
            "quantization": quantization and quantization.to_dict(),
            "weights": _hash_of_weights(new),
        }
        if deployed:
            told |= {"attention": getattr(model.config, CONFIG_KEY, None), "deployment": deployed}
        return write_manifest(new, KIND, {**settings, **told}, inputs)


def read_folder(folder: Path, device: str = "cpu") -> tuple[Parts, Mapping[str, Any]]:
    """Read what :func:`write_folder` wrote, with attention and simulated quantisation put back; or a deployed model.

    Args:
        folder: the folder.
        device: where model and vocoder compute, in single precision; a deployed graph knows the cpu alone.

    Returns:
        The parts, and the settings.

    Raises:
        UserError: it is not such a folder, or damaged, or something in it was exchanged; or there is no such device.
    """
    known_device(device)
    manifest = read_manifest(folder, KIND)
    found = {name: _part(folder, name, wanted) for name, wanted in manifest.inputs.items()}
    try:
        vocabulary, codebook = load_vocabulary(found["vocabulary"]), Codebook.load(found["codebook"])
        weights = manifest.settings["weights"]
    except KeyError as error:
        raise UserError(f"{folder}: damaged manifest (it does not name {error})") from error
    require_match(f"{folder}: the manifest (its weights)", weights, _hash_of_weights(folder))
    model = _model(folder, device)
    vocoder = Vocoder.load(found["vocoder"], device) if "vocoder" in found else None
    return Parts(model, vocabulary, codebook, vocoder), manifest.settings


def _model(folder: Path, device: str) -> Any:
    if (folder / GRAPH).is_file():
        if torch.device(device).type != "cpu":
            raise UserError(
                f"device: {device} (the deployed model in {folder} computes on the cpu; deploy with the engine torch)"
            )
        return DeployedModel(folder)
    try:
        with no_progress_bars():
            model = load_pretrained(folder, dtype=torch.float32)
        if record := getattr(model.config, RECORD, None):
            require_device(device, record["bits"])
        return model.to(device)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged model ({str(error).strip().splitlines()[0]})") from error


def _part(folder: Path, name: str, wanted: str) -> Path:
    """Find a part in the folder or among the shipped ones."""
    path = folder / name if (folder / name).is_dir() else shipped(name)
    require_match(f"{folder}: the model (its {name})", wanted, read_manifest(path, name).fingerprint)
    return path


def _fingerprint_of_shipped(name: str) -> str | None:
    try:
        return read_manifest(shipped(name), name).fingerprint
    except UserError:
        return None


def weight_files(folder: Path) -> list[Path]:
    """List the files that a model's weights are in, and its graph if it has one."""
    return [*folder.glob("*.safetensors"), *(path for path in (folder / GRAPH, folder / WEIGHTS) if path.is_file())]


def _hash_of_weights(folder: Path) -> str:
    return fingerprint({path.name: path for path in weight_files(folder)})


def fingerprint_of_model(folder: Path) -> str:
    """Hash the configuration and the weights of a model's folder, be it a SpeechLM's or transformers'."""
    config = folder / "config.json"
    return fingerprint([_hash_of_weights(folder), config if config.is_file() else None])


def _halved(model: Any) -> dict[str, torch.Tensor]:
    """Halve every weight once, so that tied ones stay tied."""
    once: dict[int, torch.Tensor] = {}
    return {
        key: once.setdefault(tensor.data_ptr(), tensor.half()) if tensor.is_floating_point() else tensor
        for key, tensor in model.state_dict().items()
    }


def load_language_model(name: str | Path, key: str) -> Any:
    """Load a text language model in single precision, with the attention that it was saved with.

    Args:
        name: a folder or a hub name.
        key: what asked for it, for the error.

    Raises:
        UserError: nothing can be loaded from there.
    """
    with _naming(name, key, "cannot be loaded as a language model"):
        return load_pretrained(name, dtype=torch.float32)


def load_tokenizer(name: str | Path, key: str) -> Any:
    """Load the tokenizer of a text language model; arguments and errors as of :func:`load_language_model`."""
    with _naming(name, key, "its tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(name)


def require_language_model(name: str | Path, key: str) -> None:
    """Find out, without its weights, whether a text language model is there; errors as of `load_language_model`."""
    with _naming(name, key, "cannot be loaded as a language model"):
        AutoConfig.from_pretrained(name)


@contextlib.contextmanager
def _naming(name: str | Path, key: str, problem: str) -> Iterator[None]:
    """Say of which model an error is."""
    try:
        with no_progress_bars(), _hub_retries_untold():
            yield
    except UserError:
        raise
    except Exception as error:  # tokenizers has no class of its own for a damaged file
        if not Path(name).exists():
            raise UserError(f"{key}: {name}: {_why_not_there(str(name), error)}") from error
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{key}: {name}: {problem} ({reason})") from error


def _why_not_there(name: str, error: Exception) -> str:
    """Tell why there is no model of a name: the first sentence of the hub, if it can be a name of one there."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return "there is no such folder"
    told = re.split(r"\n|(?<=\.)\s", str(error).strip(), maxsplit=1)[0].rstrip(".")
    return f"there is no such folder, nor can it be had from the Hugging Face hub ({told})"


@contextlib.contextmanager
def _hub_retries_untold() -> Iterator[None]:
    """Keep huggingface_hub from telling each of its tries to reach the hub; what comes of them is an error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars for files that are read in a moment."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
