"""A small world: sentences of number words whose units follow their letters, so that the tasks can be learnt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.start import new_model
from sparq.adaptation.training import Training, adapt
from sparq.attention import install
from sparq.config import AdaptationConfig, CurriculumConfig, EarlyStoppingConfig, LoraConfig, ModelConfig
from sparq.corpus.utterance import Utterance
from sparq.language.tasks import TASKS
from sparq.language.vocabulary import JointVocabulary

UNITS = 27
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
SHAPE = ModelConfig(hidden_size=16, layers=2, heads=2, intermediate_size=24, max_positions=256, dropout=0.1)


def said(words: list[str], *, timed: bool = True) -> Utterance:
    """Two frames of one unit a letter; a pause of unit 0 behind each word."""
    units: list[int] = []
    starts, ends = [], []
    for word in words:
        starts.append(len(units))
        units += [ord(letter) - ord("a") + 1 for letter in word for _ in range(2)]
        ends.append(len(units))
        units += [0]
    times = {"starts": np.array(starts), "ends": np.array(ends)} if timed else {}
    return Utterance(" ".join(words), np.array(units), **times)


def sentences(
    count: int, seed: int = 0, *, shortest: int = 4, longest: int = 12, timed: bool = True
) -> list[Utterance]:
    random = np.random.default_rng(seed)
    lengths = random.integers(shortest, longest + 1, size=count)
    return [said([str(w) for w in random.choice(WORDS, size=n)], timed=timed) for n in lengths]


class _Writer:
    """Writes lines before there is a vocabulary."""

    write_text = staticmethod(str)

    @staticmethod
    def write_units(units: Any) -> str:
        return "".join(chr(0x4E00 + int(u)) for u in units)


def joint() -> JointVocabulary:
    lines = [TASKS["asr"].line(_Writer(), text=u.text, units=u.units) for u in sentences(200)]
    return JointVocabulary.train(lines, 80, UNITS)


def rigged(losses: Sequence[float]) -> Callable[[Any], dict[str, float]]:
    """A live measure that gives these losses one after another, whatever the model has learnt."""
    coming = iter(losses)
    return lambda _: {"held_out/asr/loss": next(coming)}


def train(folder: Path, method: str, *, steps: int = 75, accumulate: int = 1, losses: Sequence[float] = ()) -> Training:
    """Train with dropout, a curriculum, a decaying schedule and a learned sink; batch 64 begins another round.

    With ``losses``, which the live measure then gives, it may stop early.
    """
    config = AdaptationConfig(
        method=method,
        lora=LoraConfig(rank=4, alpha=8),
        steps=steps,
        accumulate=accumulate,
        batch_bins=120,
        learning_rate=3e-3,
        schedule="cosine",
        warmup_steps=2,
        log_every=5,
        save_every=10,
        early_stopping=EarlyStoppingConfig(patience=1) if losses else None,
    )
    vocabulary = joint()
    curriculum = CurriculumConfig(words=1, longest=3, batches=64)
    said_so_far = sentences(30, shortest=1, longest=4)
    stream = ExampleStream(said_so_far, vocabulary, {"asr": 1, "tts": 1}, config.batch_bins, curriculum=curriculum)
    measure = rigged(losses) if losses else None
    return adapt(install(new_model(SHAPE, vocabulary), "learned"), stream, config, folder, measure=measure)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], steps=int(sys.argv[3]), losses=[float(loss) for loss in sys.argv[4:]])
