"""A folder of recordings, made of tones, and a tiny model that learns from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparq.speech.audio import save_audio

NAMES = ["ann", "ben", "cat", "dan", "eve", "fay", "gus", "hal", "ida", "jo", "kit", "lee", "max", "ned", "oli", "pam"]
POSITIONS = 80


def _tones(seconds: float, seed: int, rate: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    tones = max(8, int(20 * seconds))
    pitch = np.repeat(random.uniform(100, 3000, tones), -(-len(time) // tones))[: len(time)]
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.01 * random.normal(size=len(time))).astype(np.float32)


def _record(folder: Path, *, count: int = len(NAMES), seconds: float = 0.4, rate: int = 16_000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(NAMES[:count]):
        save_audio(folder / f"{name}.wav", _tones(seconds, seed, rate), rate)
        (folder / f"{name}.txt").write_text(f"Hi {name}.")
    return folder


@pytest.fixture(scope="session")
def record() -> Callable[..., Path]:
    """Make a folder of so many recordings, so long, with so many samples a second."""
    return _record


@pytest.fixture(scope="session")
def base(tiny_run, tmp_path_factory) -> Path:
    """The tiny model with few positions, so that its answers are soon over."""
    from sparq.language.speech_lm import SpeechLM

    lm = SpeechLM.load(tiny_run.folder / "max" / "speechlm")
    lm.model.config.max_position_embeddings = POSITIONS
    lm.prior_name = "smollm2-135m"
    folder = tmp_path_factory.mktemp("base") / "tiny"
    lm.save(folder)
    return folder
