"""What a voice is: it reads a text aloud and, if it can, says when each word was spoken."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from sparq.errors import UserError
from sparq.speech.phones import Phone

T = TypeVar("T", "Word", Phone)


class NothingToSayError(UserError):
    """A text has nothing in it that can be pronounced."""


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of the text and when it is spoken.

    Attributes:
        text: as written, with its punctuation.
        start: seconds from the start of the utterance.
        end: the same.
    """

    text: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """A text read aloud.

    Attributes:
        waveform: float32 ``[samples]`` at 16 kHz.
        words: the words of ``text.split()`` with their times; None where the voice cannot tell, or where it reads other
            words than are written ("1984" is three words).
        phones: what is heard, pauses included, with their times; None where the voice cannot tell.
    """

    waveform: np.ndarray
    words: tuple[Word, ...] | None
    phones: tuple[Phone, ...] | None = None

    def disturbed(self, waveform: np.ndarray, rate: float) -> Utterance:
        """Return it as another waveform, in which everything comes ``rate`` times as early."""

        def moved(times: Sequence[T] | None) -> tuple[T, ...] | None:
            return (
                None
                if times is None
                else tuple(dataclasses.replace(t, start=t.start / rate, end=t.end / rate) for t in times)
            )

        return Utterance(waveform, moved(self.words), moved(self.phones))


class Voice(abc.ABC):
    """A teacher.

    Attributes:
        name: what ``load_voice`` was given.
    """

    name: str

    def speak(self, text: str, speed: float = 1.0, seed: int = 0) -> Utterance:
        """Read a text aloud.

        Args:
            text: English, of any number of sentences.
            speed: 2 is twice as fast.
            seed: of the noise in hibari's voice; piper draws its own noise, the others have none.

        Raises:
            NothingToSayError: there is nothing to pronounce in the text ("--").
            UserError: a speed outside 0.25 to 4, or the voice's program failed.
        """
        if not 0.25 <= speed <= 4.0:
            raise UserError(f"speed: {speed} is not between 0.25 and 4")
        if not any(c.isalnum() for c in text):
            raise NothingToSayError(f"nothing to pronounce in {text!r}")
        return self._speak(text, speed, seed)

    @abc.abstractmethod
    def _speak(self, text: str, speed: float, seed: int) -> Utterance:
        """Read a text that has letters or digits, at a speed that is allowed."""
