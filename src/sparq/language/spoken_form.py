"""Numbers, dates, money and signs as the words that an English reader says for them.

A vocabulary of letters learnt from words alone, so that figures are nothing to it: "1999" has to be "nineteen ninety
nine" before it is read out or learnt from. The words of numbers are inflect's; which of its readings is meant (a year,
an ordinal, a telephone number) is told by how a figure is written. Abbreviations are written out where their full stop
tells them from words.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable

from sparq.language.dates import DATES, TIMES
from sparq.language.measures import MEASURES
from sparq.language.money import CURRENCY, RANGES, SUMS, unit
from sparq.language.numbers import (
    AMOUNT,
    FRACTION_SIGNS,
    LONGEST_CARDINAL,
    NUMBER,
    POWERS,
    ROMAN,
    cardinal,
    decimal,
    digits,
    fraction,
    number,
    of_roman,
    ordinal,
)

_SIGNS = {
    "&": "and",
    "+": "plus",
    "\u00b1": "plus or minus",
    "=": "equals",
    "\u2248": "approximately",
    "@": "at",
    "%": "percent",
    "\u00d7": "times",
    "\u00f7": "divided by",
    "#": "number",
    "\u00a7": "section",
    "\u00a2": "cents",
    **POWERS,
}
_QUANTIFIERS = {"~": "about", "<": "less than", ">": "more than", "\u2264": "at most", "\u2265": "at least"}
_ABBREVIATIONS = {
    "dr": "doctor",
    "prof": "professor",
    "capt": "captain",
    "gen": "general",
    "col": "colonel",
    "lt": "lieutenant",
    "sgt": "sergeant",
    "gov": "governor",
    "sen": "senator",
    "rev": "reverend",
    "hon": "honorable",
    "mt": "mount",
    "st": "saint",
    "jr": "junior",
    "sr": "senior",
    "vs": "versus",
    "ave": "avenue",
    "dept": "department",
    "approx": "approximately",
    "jan": "january",
    "feb": "february",
    "aug": "august",
    "sept": "september",
    "oct": "october",
    "nov": "november",
    "dec": "december",
    "etc": "et cetera",
    "e.g": "for example",
    "i.e": "that is",
}
_BEFORE_FIGURES = {
    "No": "number",
    "Nos": "numbers",
    "p": "page",
    "pp": "pages",
    "Fig": "figure",
    "fig": "figure",
    "Eq": "equation",
    "eq": "equation",
    "Ch": "chapter",
    "Vol": "volume",
    "vol": "volume",
    "ca": "circa",
}
_COUNTED = r"World\s+War|Chapter|Act|Volume|Phase|Super\s+Bowl|(?:Part|Book)(?!\s+I\b)"
_RULERS = (
    "Henry|Louis|George|Edward|Charles|James|William|Richard|Elizabeth|Philip|Frederick|Napoleon|Catherine|Nicholas|"
    "Alexander|Paul|Pius|Benedict|Leo|Gregory"
)
_TOP_LEVEL = "com|org|net|edu|gov|io|info|eu|uk"
_NEEDED = re.compile(
    rf"{CURRENCY}|[\d\u00b0{re.escape(''.join([*_SIGNS, *FRACTION_SIGNS]))}]|\w\.|"
    rf"[a-z]\s+(?!I\b)[IVXL]+\b|(?:{_COUNTED})\s+I\b"
)

Rule = tuple[str, int, Callable[[re.Match[str]], str]]


def spoken_form(text: str) -> str:
    """Write out what is not written as words; a text of words stays what it is.

    Args:
        text: English; upper case tells a saint from a street.
    """
    if not _NEEDED.search(text):
        return text
    text = re.sub(r"\s+([,.;:!?)])(?!\d)", r"\1", text)
    for pattern, words in _rules():
        text = pattern.sub(words, text)
    return re.sub(r"\s+([,.;:!?)]|['\u2019]s\b)", r"\1", " ".join(text.split()))


@functools.cache
def _rules() -> tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...]:
    """What is written, and its words; an earlier rule leaves words, or figures for the later ones."""
    ordered = (*_abbreviations(), *DATES, *_codes(), *RANGES, *_between(), *SUMS, *MEASURES, *TIMES, *_numbers())
    return tuple((re.compile(pattern, flags), _apart(words)) for pattern, flags, words in ordered)


def _apart(words: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
    return lambda found: f" {words(found)} "


def _abbreviations() -> Iterable[Rule]:
    """What stands for longer words; a figure may touch it, since that is words in the end."""
    letter = rf"[^\W\d{''.join(POWERS)}{FRACTION_SIGNS}]"
    start, end = rf"(?<!{letter})(?<!\.)", f"(?!{letter})"
    shorter, counted = _either(_ABBREVIATIONS), _either(_BEFORE_FIGURES)
    roman, no_initial = f"{ROMAN}{end}", rf"(?![IL]{end}|[VX]\.)"  # such as that of William L. Shirer
    return (
        (rf"(?<=[^\s.])\.(?=(?:[\w@-]+\.)*(?:{_TOP_LEVEL}){end})", 0, lambda _: "dot"),
        (f"[{FRACTION_SIGNS}]", 0, lambda its: unicodedata.normalize("NFKC", its[0]).replace("\u2044", "/")),
        (rf"{start}St\.(?!\.|{letter}|\s+[A-Z])", 0, lambda _: "street"),
        (rf"{start}({shorter})\.(?!\.|{letter})", re.IGNORECASE, lambda its: _ABBREVIATIONS[its[1].lower()]),
        (rf"{start}({counted})\.(?=\s?\d)", 0, lambda its: _BEFORE_FIGURES[its[1]]),
        (rf"{start}({_COUNTED})\s+({roman})", 0, lambda its: f"{its[1]} {cardinal(of_roman(its[2]))}"),
        (rf"{start}({_RULERS})\s+{no_initial}({roman})", 0, lambda its: f"{its[1]} the {ordinal(of_roman(its[2]))}"),
    )


def _codes() -> Iterable[Rule]:
    """Figures that are no quantity: telephone numbers, and others with several hyphens."""
    return (
        (r"\+\d{1,3}(?=(?:\D{0,2}\d){9})(?:[-.\s]\(?\d{2,4}\)?){2,}", 0, lambda its: f"plus {digits(its[0])}"),
        (r"(?<!\d)(?:\d[-.\s])?(?:\(?\d{3}\)?[-\s]\s?)?\d{3}-\d{4}\b", 0, lambda its: digits(its[0])),
        (r"(?<![\d.])(?:\d\.)?\d{3}\.\d{3}\.\d{4}(?!\.?\d)", 0, lambda its: digits(its[0])),
        (r"(?<![\d-])1-[89]\d\d(?=-[A-Z])", 0, lambda its: digits(its[0])),
        (r"(?<![\d-])\d+(?:-\d+){2,}(?![\d-])", 0, _hyphenated),
        (rf"\d(?:,?\d){{{LONGEST_CARDINAL},}}", 0, lambda its: digits(its[0])),
    )


def _between() -> Iterable[Rule]:
    """What a hyphen between figures is: a mixed number's, from one to another, a minus."""
    endings = (r"[\d%\u00b0\u00a2]", r"\d[kKMB]", r"\d0s", r"\u00b0[CF]", r"\d(?:st|nd|rd|th|am|pm|AM|PM|bn)")
    after = "|".join(rf"(?<={one})" for one in (*endings, r"\d [ap]m", r"[ap]\.m\."))
    return (
        (r"\b50-50\b", 0, lambda _: "50 50"),
        (r"\^([23])(?![.\d])", 0, lambda its: ("squared", "cubed")[int(its[1]) - 2]),
        (r"\^(-?)(?=\d)", 0, lambda its: f"to the {'minus' if its[1] else ''}"),
        (r"(?<![/\d.,-])(\d{1,2})-(?=[1-9]/\d)", 0, lambda its: its[1]),
        (rf"(?<=\d)\s?[-\u2212]\s?(?={CURRENCY}?{AMOUNT}\s?=)", 0, lambda _: "minus"),
        (r"(?<=\d)\s?\u2212\s?(?=\d)|(?<=\de)-(?=\d)", 0, lambda _: "minus"),
        (rf"(?:{after})\s?[-\u2013\u2014]\s?(?={CURRENCY}?\.?\d)", 0, lambda _: "to"),
        (rf"({CURRENCY})\s?[-\u2212](?=\.?\d)", 0, lambda its: f"minus {its[1]}"),
        (rf"(?<![\w.])[-\u2212](?={CURRENCY}?\.?\d)", 0, lambda _: "minus"),
        (rf"(?<=\d)\s?x\s?(?={AMOUNT}\s?=)|(?<=\d)x(?=\s(?:as|more|less|\w+er)\b)", 0, lambda _: "times"),
        (rf"({_either(_QUANTIFIERS)})(?=\s?{CURRENCY}?\.?\d)", 0, lambda its: _QUANTIFIERS[its[1]]),
        (r"(?<=\d)(?<!\b0)\s?x\s?(?=\d)", 0, lambda _: "by"),
    )


def _numbers() -> Iterable[Rule]:
    """The numbers and signs that are left."""
    return (
        (rf"\b({NUMBER})(?:st|nd|rd|th)\b", re.IGNORECASE, lambda its: ordinal(its[1])),
        (r"(?<![/\d.,])(\d{1,3})\s+(\d+)/(\d+)(?![/\d])", 0, lambda its: fraction(its[2], its[3], whole=its[1])),
        (r"(?<![/\d])(\d+)/(\d+)(?:ths|th|rds|rd)?(?![/\d])", 0, lambda its: fraction(its[1], its[2])),
        (rf"({NUMBER}(?:\.\d+)+|(?<![\w.])\.\d+)", 0, lambda its: decimal(its[1])),
        (NUMBER, 0, lambda its: number(its[0])),
        (r"(?<=\b[CF])#", 0, lambda _: "sharp"),
        (r"#(?=[^\W\d])", 0, lambda _: "hashtag"),
        (CURRENCY, 0, lambda its: unit(its[0])),
        (_either(_SIGNS), 0, lambda its: _SIGNS[its[0]]),
    )


def _hyphenated(its: re.Match[str]) -> str:
    """Scores of three numbers, else a number that is said figure by figure."""
    parts = its[0].split("-")
    return " ".join(map(number, parts)) if max(map(len, parts)) <= 2 else digits(its[0])


def _either(written: Iterable[str]) -> str:
    return "|".join(re.escape(one) for one in written)
