"""Words of numbers in figures: cardinals, ordinals, years, decimals, fractions; inflect's, in letters alone."""

from __future__ import annotations

import functools
import re
from typing import Any

NUMBER = r"(?:\d+(?:,\d{3})+|\d+)"
AMOUNT = rf"(?:{NUMBER}(?:\.\d+)?|\.\d+)"
FRACTION_SIGNS = "".join(map(chr, [*range(0xBC, 0xBF), *range(0x2150, 0x215F)]))
POWERS = {"\u00b2": "squared", "\u00b3": "cubed"}
ROMAN = r"(?=[IVXL])(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3})"
_LONGEST = 15  # digits of a number that is said as one, up to hundreds of trillions; others are digits, one by one
LONGEST_CARDINAL = 36  # digits of the longest number that has a name
_PARTS = {"2": "half", "4": "quarter"}
_DENOMINATORS = {"2", "3", "4", "5", "6", "7", "8", "9", "10", "16"}


@functools.cache
def _inflect() -> Any:
    import inflect

    return inflect.engine()


def cardinal(figures: str) -> str:
    """A quantity: 42 is "forty two"."""
    words: str = _inflect().number_to_words(figures, andword="")
    return re.sub("[-,]", " ", words)


def digits(figures: str) -> str:
    """Figures one by one, whatever stands between them."""
    return " ".join(cardinal(figure) for figure in figures if figure.isdecimal())


def number(figures: str) -> str:
    """A year if it may be one, digits where they are no quantity, else a cardinal."""
    plain = figures.replace(",", "")
    if figures == plain and re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", plain):
        return _year(plain)
    if (plain[0] == "0" and plain != "0") or len(plain) > _LONGEST or (figures == plain and len(plain) >= 7):
        return digits(plain)
    return cardinal(plain)


def two_digits(figures: str) -> str:
    """Minutes, or a year of a century that is not said: 05 is "oh five"."""
    return f"{'oh ' if figures[0] == '0' else ''}{cardinal(str(int(figures)))}"


def _year(figures: str) -> str:
    century, rest = figures[:2], figures[2:]
    return f"{cardinal(century)} {'hundred' if rest == '00' else two_digits(rest)}"


def ordinal(figures: str) -> str:
    """A place in a row: 21 is "twenty first"."""
    words: str = _inflect().ordinal(_inflect().number_to_words(figures.replace(",", ""), andword=""))
    return re.sub("[-,]", " ", words)


def several(figures: str) -> str:
    """More than one of a number: 747 is "seven hundred forty sevens", 1,000 "thousands"."""
    words: str = _inflect().plural(number(figures))
    return words.removeprefix("one ") if words in {"one hundreds", "one thousands"} else words


def decimal(figures: str) -> str:
    """A number with points in it; one that begins with a point is said so."""
    whole, *parts = figures.split(".")
    if whole:
        whole = number(whole) if len(whole) > 1 and whole[0] == "0" else cardinal(whole.replace(",", ""))
    return " point ".join([whole, *(digits(part) for part in parts)]).strip()


def fraction(numerator: str, denominator: str, *, whole: str | None = None) -> str:
    """Parts of a whole: 2/3 is "two thirds", 1 3/4 "one and three quarters".

    What is no part of a whole is two numbers, such as 24/7.
    """
    before = f"{cardinal(whole)} " if whole else ""
    if int(numerator) >= int(denominator) or (numerator, denominator) == ("9", "11"):
        return f"{before}{number(numerator)} {number(denominator)}"
    if denominator not in _DENOMINATORS or numerator[0] == "0":
        return f"{before}{number(numerator)} over {number(denominator)}"
    part = _PARTS.get(denominator) or ordinal(denominator)
    if numerator != "1":
        part = f"{cardinal(numerator)} {part}s"
    elif whole:
        part = f"{'an' if part[0] == 'e' else 'a'} {part}"
    else:
        part = f"one {part}"
    return f"{before}and {part}" if whole else part


def of_roman(figures: str) -> str:
    """A Roman numeral in Arabic figures."""
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[figure] for figure in figures]
    following = [*values[1:], 0]
    return str(sum(-one if one < after else one for one, after in zip(values, following, strict=True)))
