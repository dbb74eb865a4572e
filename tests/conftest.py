"""A whole run of a tiny recipe: few short sentences, a model from nothing, three steps; made once for all tests."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

SENTENCES = [
    "The train leaves at half past nine.", "She'd like a garden.", "A neighbour said.", "Nothing was found there.",
    "The house stood empty.", "Come back soon!", "It was cold.", "We shall see.", "Who goes there?", "Bring the lamp.",
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def prior_not_installed():
    """Transcripts are the SpeechLM's own, whatever this machine has; tests of the prior ask for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparq.language.prior.installed", lambda _: False)
        yield


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """A finished run.

    Attributes:
        recipe: its YAML file.
        folder: its folder; tests that change something work on a copy.
        audio: a sentence as a wav file, 16 kHz.
        rows: of its table.
        report: its page.
    """

    recipe: Path
    folder: Path
    audio: Path
    rows: list[dict[str, Any]]
    report: Path


def _recipe(base: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "corpus": {
            "sources": [{"kind": "text", "path": str(base / "tiny.tsv"), "held_out": 4, "keep_audio": 2}],
            "units": {"name": "codebook"},
            "processes": 1,
        },
        "vocabulary": {"size": 136},
        "vocoder": {"name": str(base / "voice")},
        "model": {
            "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 16, "max_positions": 512, "dropout": 0,
        },
        "attention": {"sinks": ["none", "max"]},
        "adaptation": {
            "method": "full", "steps": 3, "warmup_steps": 1, "batch_bins": 600, "save_every": 2, "log_every": 1,
        },
        "quantization": [{"calibration_sequences": 4}],
        "evaluation": {
            "sentences": 3,
            "max_pieces": 12,
            "spoken": ["Come in."],
            "recordings": [{"path": str(base / "said.wav"), "reference": "come back soon"}],
        },
        "output": str(base / "run"),
    }  # fmt: skip


def _voice(folder: Path) -> None:
    """An untrained vocoder, small enough to be quick."""
    import torch

    from sparq.corpus.codebook import load_codebook
    from sparq.speech.duration import DurationPredictor
    from sparq.speech.vocoder import UnitGenerator, Vocoder, VocoderConfig

    torch.manual_seed(0)
    codebook = load_codebook("codebook")
    config = VocoderConfig.preset("small", units=codebook.size, channels=16, embedding=8)
    Vocoder(UnitGenerator(config), DurationPredictor(codebook.size), codebook.meaning).save(folder)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Make the run, once for all workers: who comes second finds every stage complete."""
    from sparq.making import Watcher
    from sparq.paper.summary import finish
    from sparq.recipe import load_recipe
    from sparq.speech.audio import save_audio
    from sparq.speech.voices import load_voice

    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    base.mkdir(exist_ok=True)
    recipe, audio = base / "tiny.yaml", base / "said.wav"
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not audio.exists():
            (base / "tiny.tsv").write_text("".join(f"s{i}\t{text}\n" for i, text in enumerate(SENTENCES)))
            recipe.write_text(yaml.safe_dump(_recipe(base)))
            _voice(base / "voice")
            save_audio(audio, load_voice("hibari").speak("Come back soon!").waveform)
        rows, report = finish(load_recipe(recipe), Watcher(), quiet=True)
    return TinyRun(recipe, base / "run", audio, rows, report)


@pytest.fixture
def two_processes() -> Callable[[Sequence[str | Path]], list[str]]:
    """Run a command as ``torchrun --nproc-per-node=2`` does, and give what each of the two printed."""

    def run(command: Sequence[str | Path]) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen(
                command,
                env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in ("0", "1")
        ]
        told = [process.communicate(timeout=300)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0]
        return told

    return run
