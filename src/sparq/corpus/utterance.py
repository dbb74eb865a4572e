"""A sentence that was said: its text, its units, and, where the voice told, when each word was said."""

from __future__ import annotations

import dataclasses

import numpy as np

from sparq.errors import UserError


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A sentence that was said.

    Attributes:
        text: the sentence.
        units: raw units [frames], or empty where there is text alone.
        starts, ends: first frame of each word of ``text.split()`` and the one after its last, or None.
    """

    text: str
    units: np.ndarray
    starts: np.ndarray | None = None
    ends: np.ndarray | None = None

    @property
    def words(self) -> int:
        """Number of words."""
        return len(self.text.split())

    def span(self, first: int, last: int) -> Utterance:
        """Words ``first`` to ``last`` (not included), with the units spoken during them."""
        if self.starts is None or self.ends is None:
            raise UserError(f"{self.text[:40]!r}: has no word times, so it has no spans")
        text = " ".join(self.text.split()[first:last])
        return Utterance(text, self.units[self.starts[first] : self.ends[last - 1]])
