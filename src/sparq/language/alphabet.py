"""Text in the letters that a vocabulary has; others are written in Latin ones, as near as can be (by AnyAscii)."""

from __future__ import annotations

import re
import unicodedata

from anyascii import anyascii

from sparq.errors import UserError
from sparq.language.numbers import FRACTION_SIGNS, POWERS
from sparq.language.vocabulary import Vocabulary


def in_letters_of(vocabulary: Vocabulary, text: str) -> str:
    """Write letters and figures that no piece of a vocabulary holds in Latin letters: "naïve" as "naive".

    A model reads what it has no piece for as one unknown thing, and says something else in its place.
    """

    def written(found: re.Match[str]) -> str:
        character = found.group()
        return character if _is_known(vocabulary, character) else anyascii(character)

    return re.sub(r"\w", written, unicodedata.normalize("NFC", text))


def _is_known(vocabulary: Vocabulary, character: str) -> bool:
    if character.isascii() or character in {*FRACTION_SIGNS, *POWERS}:  # figures are said as words
        return True
    try:
        return bool(vocabulary.decode_text(vocabulary.encode_text(character)))
    except UserError:  # the character stands for a unit
        return False
