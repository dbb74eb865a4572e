"""How text and units are written into lines: text in its normal form, a unit u as the character U+4E00 + u (VoxtLM)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from sparq.errors import UserError
from sparq.language.spoken_form import spoken_form

CONTROLS = ("<startoftext>", "<startofspeech>", "<generatetext>", "<generatespeech>")
UNIT_ORIGIN = 0x4E00
MAXIMUM_UNITS = 0x9FFF - UNIT_ORIGIN + 1  # the block of CJK ideographs
CONTROL_PATTERN = re.compile("(" + "|".join(CONTROLS) + ")")
UNIT_RANGE = re.compile(f"[{chr(UNIT_ORIGIN)}-{chr(UNIT_ORIGIN + MAXIMUM_UNITS - 1)}]")

_DOT_ABOVE = "\u0307"  # what is left of a Turkish İ beside its i

Normalisation = Literal["none", "lower", "letters"]


def unit_characters(units: Iterable[int]) -> str:
    """Write units as characters, U+4E00 + u each, without spaces."""
    return "".join(chr(UNIT_ORIGIN + int(unit)) for unit in units)


def normalise_text(text: str, how: Normalisation) -> str:
    """Bring text into the form that the language model sees.

    Args:
        text: what a user or a corpus wrote.
        how: ``none`` keeps it, ``lower`` lower-cases it (VoxtLM), ``letters`` also writes numbers and signs as words
            (:func:`sparq.language.spoken_form.spoken_form`) and keeps letters and apostrophes alone, as the transcripts
            of LibriSpeech do.

    Raises:
        UserError: the text holds a control token or a character that stands for a unit.
    """
    if CONTROL_PATTERN.search(text) or UNIT_RANGE.search(text):
        raise UserError(f"text {text[:40]!r}: holds a control token or a character that stands for a speech unit")
    if how == "none":
        return " ".join(text.split())
    text = unicodedata.normalize("NFC", text)  # accents that are characters of their own would cut words
    if how == "letters":
        text = re.sub(r"[^\w'\u2019 ]|_", " ", spoken_form(text))
    text = text.lower().replace("\u2019", "'").replace(_DOT_ABOVE, "")
    return " ".join(text.split())


def checked_units(units: int) -> int:
    """Refuse a number of units that cannot be written, one character each."""
    if not 1 <= units <= MAXIMUM_UNITS:
        raise UserError(f"units: {units} (expected 1 to {MAXIMUM_UNITS})")
    return units


class Writer:
    """Writes text and units into lines, before there are pieces.

    Attributes:
        units: number of units k of the codebook.
        deduplicate: whether repeats of a unit are merged before they are written.
        normalisation: how text is brought into form, see :func:`normalise_text`.
    """

    def __init__(self, units: int, *, deduplicate: bool, normalisation: Normalisation) -> None:
        self.units = checked_units(units)
        self.deduplicate = deduplicate
        self.normalisation: Normalisation = normalisation

    def write_text(self, text: str) -> str:
        """Text as it stands in a line."""
        return normalise_text(text, self.normalisation)

    def write_units(self, units: Sequence[int] | np.ndarray) -> str:
        """Units as they stand in a line: repeats merged if ``deduplicate``, one character each.

        Raises:
            UserError: a unit is outside the codebook.
        """
        array = np.asarray(units, dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.units):
            raise UserError(
                f"unit {int(array.max() if array.min() >= 0 else array.min())}: outside 0 to {self.units - 1}"
            )
        if self.deduplicate and array.size:
            array = array[np.insert(array[1:] != array[:-1], 0, True)]
        return unit_characters(array)
