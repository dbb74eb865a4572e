"""Units as another reader would have them: what a corpus says twice teaches which units are taken for which.

The units of one sentence differ from reader to reader, and in noise: some are others, some are missing, some come in
between. Where a corpus holds texts that were said more than once, the sequences are aligned two by two (Levenshtein)
and the differences counted. Speech of one reader can then be changed as the others would change it, anew each time it
is drawn, so that a model does not learn its readers' units by heart. It is to units what SpecAugment is to spectra.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

from sparq.corpus.utterance import Utterance
from sparq.errors import UserError
from sparq.speech.units import merge_repeats

_PAIRS = 4000  # aligned; the counts hardly change beyond a thousand


class UnitNoise:
    """Random changes of units.

    Args:
        counts: float ``[units + 1, units + 1]``: how often a unit (row) stood where another reader has a unit (column);
            in the last column how often the other has none, in the last row what the other has in between.

    Attributes:
        changed: share of the units that two readers do not have in common.
    """

    def __init__(self, counts: np.ndarray) -> None:
        own = counts[:-1].sum(axis=1)
        # A unit that was never seen stays as it is.
        chances = np.where(own[:, None] > 0, counts[:-1] / np.maximum(own, 1)[:, None], np.eye(*counts[:-1].shape))
        self._cumulated = np.cumsum(chances, axis=1)
        between = counts[-1, :-1]
        self._insertion = between.sum() / max(own.sum(), 1)
        self._inserted = np.cumsum(between) / max(between.sum(), 1)
        self.changed = float(1 - np.trace(counts[:-1, :-1]) / max(own.sum(), 1))

    @classmethod
    def learn(cls, utterances: Sequence[Utterance], units: int, seed: int = 0) -> UnitNoise:
        """Count the differences between utterances of one text.

        Args:
            utterances: of which some have the same text.
            units: size of the codebook.
            seed: of which pairs are drawn.

        Raises:
            UserError: no text was said more than once.
        """
        said: dict[str, list[np.ndarray]] = {}
        for utterance in utterances:
            if utterance.text and len(utterance.units):
                said.setdefault(utterance.text, []).append(utterance.units)
        several = [its for its in said.values() if len(its) > 1]
        if not several:
            raise UserError("adaptation.unit_noise: the corpus has no text that was said more than once")
        random, counts = np.random.default_rng(seed), np.zeros((units + 1, units + 1))
        for _ in range(_PAIRS):
            its = several[random.integers(len(several))]
            first, second = (merge_repeats(its[index])[0] for index in random.permutation(len(its))[:2])
            _count(first, second, counts)
        return cls(counts)

    def __call__(self, units: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
        """Change units as another reader would, each of them with some probability.

        Args:
            units: raw, int64 ``[frames]``.
            share: that probability, 0 to 1.
            random: draws.

        Returns:
            Raw units, int64; at least one.
        """
        merged, frames = merge_repeats(units)
        row = self._cumulated[merged]
        other = np.minimum((random.random(len(merged))[:, None] >= row).sum(axis=1), row.shape[1] - 1)
        changed = np.where(random.random(len(merged)) < share, other, merged)
        changed, frames = changed[changed < row.shape[1] - 1], frames[changed < row.shape[1] - 1]
        places = np.flatnonzero(random.random(len(changed)) < share * self._insertion)
        inserted = np.searchsorted(self._inserted, random.random(len(places)), "right")
        changed = np.insert(changed, places, inserted)
        frames = np.insert(frames, places, 1)
        return np.repeat(changed, frames) if len(changed) else units


def _count(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> None:
    none = len(counts) - 1
    for step in Levenshtein.opcodes(first.tolist(), second.tolist()):
        own, others = first[step.src_start : step.src_end], second[step.dest_start : step.dest_end]
        if step.tag == "delete":
            others = np.full_like(own, none)
        elif step.tag == "insert":
            own = np.full_like(others, none)
        np.add.at(counts, (own, others), 1)
