"""How much a SpeechLM hears or says at once."""

from __future__ import annotations

import dataclasses

from sparq.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long an utterance may be that the model hears or says at once; what is longer is cut.

    Attributes:
        seconds: of speech, cut at pauses.
        words: of text, cut at the ends of sentences and phrases.
    """

    seconds: float = 9.0
    words: int = 24

    def __post_init__(self) -> None:
        if not self.seconds >= 2:
            raise UserError(f"limits.seconds: {self.seconds!r} (expected at least 2)")
        if not isinstance(self.words, int) or self.words < 1:
            raise UserError(f"limits.words: {self.words!r} (expected a whole number of at least 1)")
