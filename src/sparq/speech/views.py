"""The same sound heard several ways: test-time augmentation for speech units.

Units of one sound differ a little when it comes half a frame later, slower or faster, as they differ between readers;
what was said does not. Whoever reads several such views together is led astray less by any one of them, most of all
where the speaker is none that the units were learnt from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sparq.errors import UserError
from sparq.speech.augmentation import change_rate
from sparq.speech.units import UnitExtractor


@dataclasses.dataclass(frozen=True)
class View:
    """A way to hear a sound.

    Attributes:
        delay: frames of silence before it, a fraction of one.
        rate: how much faster and higher it is played.
    """

    delay: float = 0.0
    rate: float = 1.0

    def of(self, waveform: np.ndarray, hop: int) -> np.ndarray:
        """Give a waveform float32 [samples] as it is heard this way; ``hop`` is the samples of a frame."""
        played = change_rate(waveform, self.rate).astype(np.float32, copy=False)
        return np.concatenate([np.zeros(round(self.delay * hop), np.float32), played]) if self.delay else played


VIEWS = (View(), View(delay=0.5), View(rate=0.93), View(rate=1.07))
"""The ways there are, the plain one first."""


def other_views(extractor: UnitExtractor, waveforms: Sequence[np.ndarray], count: int) -> list[tuple[np.ndarray, ...]]:
    """Hear waveforms in the ways besides the plain one.

    Args:
        extractor: makes the units.
        waveforms: float32 [samples] at 16 kHz.
        count: of ways, the plain one included; the first so many of ``VIEWS``.

    Returns:
        For each waveform raw units int64 [frames] of each other way that gives any.

    Raises:
        UserError: there are not so many ways.
    """
    if not 1 <= count <= len(VIEWS):
        raise UserError(f"views: {count} (expected 1 to {len(VIEWS)})")
    hop = extractor.encoder.hop
    heard = [extractor.extract([view.of(its, hop) for its in waveforms]) for view in VIEWS[1:count]]
    return [tuple(units for units in ways if len(units)) for ways in zip(*heard, strict=True)] or [()] * len(waveforms)
