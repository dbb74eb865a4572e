"""Phones: what a text sounds like, as symbols of hibari's pronouncing lexicon, and which of them a frame belongs to.

A phone is one letter of that alphabet (IPA, with single letters for diphthongs: "A" is the vowel of "day"). Marks of
stress and length are no phones. Between words, and before and after them all, stands :data:`PAUSE`, where there may be
silence or none.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sparq.assets import embedded
from sparq.speech.audio import RATE
from sparq.speech.encoder import Encoder

PAUSE = "|"
BREAKS = WORD, MARK, END = " ", ",", "."
"""What stands between phones where it matters what: the end of a word, a mark of punctuation, the ends of the text."""

_STRESS, _LENGTH = "ˈˌ", "ː"


@dataclasses.dataclass(frozen=True)
class Phone:
    """A phone and when it is spoken.

    Attributes:
        symbol: a letter, or :data:`PAUSE`.
        start: seconds from the start of the utterance.
        end: the same.
    """

    symbol: str
    start: float
    end: float


@functools.cache
def phonemiser(*, british: bool = False) -> Any:
    """Load hibari with its lexicon of one of two countries, once for a process.

    Raises:
        UserError: the package is not installed.
    """
    embedded("hibari")  # says what to install
    import hibari
    from hibari.g2p import G2P

    return hibari.Hibari(g2p=G2P(british=british))


def pronounce(text: str) -> tuple[str, ...]:
    """Return the phones of an English text, with pauses at both ends and between words, where no two stand together.

    Raises:
        UserError: the package hibari-tts is not installed.
    """
    return tuple(PAUSE if symbol in BREAKS else symbol for symbol in phones_and_breaks(text))


def phones_and_breaks(text: str) -> tuple[str, ...]:
    """Return the phones of an English text, one of :data:`BREAKS` between words and :data:`END` at both ends.

    Raises:
        UserError: the package hibari-tts is not installed.
    """
    known = phonemiser()
    found = [END]
    for sentence in known.phonemize(text):
        for symbol in (*(symbol for symbol in sentence if symbol in known.vocab), MARK):
            if symbol in _STRESS + _LENGTH:
                continue
            if symbol.isalpha():
                found.append(symbol)
            elif found[-1] not in BREAKS:
                found.append(WORD if symbol.isspace() else MARK)
            elif found[-1] == WORD and not symbol.isspace():
                found[-1] = MARK
    if found[-1] in BREAKS:
        found.pop()
    return (*found, END)


def timed_phones(symbols: Sequence[str], ends: Sequence[float] | np.ndarray) -> list[Phone]:
    """Turn a voice's symbols into phones; a stress mark's time goes to the next phone, a length mark's to the last.

    Args:
        symbols: as the voice was given them, anything that is no letter being a pause.
        ends: the second at which each ends; the first starts at 0.
    """
    phones: list[Phone] = []
    start = 0.0
    for symbol, end in zip(symbols, map(float, ends), strict=True):
        if symbol in _STRESS:
            continue
        if symbol in _LENGTH and phones:
            phones[-1] = dataclasses.replace(phones[-1], end=end)
        else:
            phones.append(Phone(symbol if symbol.isalpha() else PAUSE, start, end))
        start = end
    return phones


def frame_phones(phones: Iterable[Phone], frames: int, encoder: Encoder) -> list[str]:
    """Return the phone that is spoken in the middle of each of an encoder's frames; behind the last, a pause."""
    phones = list(phones)
    middles = (np.arange(frames) * encoder.hop + encoder.first_frame / 2) / RATE
    places = np.searchsorted([phone.end for phone in phones], middles, side="right")
    symbols = [*(phone.symbol for phone in phones), PAUSE]
    return [symbols[place] for place in places]
