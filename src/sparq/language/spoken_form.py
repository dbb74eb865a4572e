"""Numbers, times, money and signs as the words that an English reader says for them.

A vocabulary of letters learnt from words alone, so that figures are nothing to it: "1999" has to be "nineteen ninety
nine" before it is read out or learnt from. The words of numbers are inflect's; which of its readings is meant (a year,
an ordinal, a telephone number) is told by how a figure is written. Abbreviations are written out where their full stop
tells them from words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

_LONGEST = 15  # digits of a number that is said as one, up to hundreds of trillions; others are digits, one by one
_NUMBER = r"\d+(?:,\d{3})+|\d+"
_SCALES = "hundred|thousand|million|billion|trillion"
_MONEY = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", "sen")}
_SIGNS = {
    "&": "and",
    "+": "plus",
    "=": "equals",
    "@": "at",
    "%": "percent",
    "°": "degrees",
    "×": "times",
    "#": "number",
}
_FRACTIONS = {("1", "2"): "one half", ("1", "4"): "one quarter", ("3", "4"): "three quarters"}
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
_NEEDED = re.compile(rf"\d|[{re.escape(''.join([*_MONEY, *_SIGNS]))}]|\w\.")


def spoken_form(text: str) -> str:
    """Write out what is not written as words; a text of words stays what it is.

    Args:
        text: English; upper case tells a saint from a street.
    """
    if not _NEEDED.search(text):
        return text
    for pattern, words in _rules():
        text = pattern.sub(words, text)
    return re.sub(r"\s+([,.;:!?)])", r"\1", " ".join(text.split()))


@functools.cache
def _rules() -> tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...]:
    """What is written, and its words; an earlier rule leaves only words to the later ones."""
    sign = f"[{re.escape(''.join(_MONEY))}]"
    abbreviations = "|".join(re.escape(one) for one in _ABBREVIATIONS)
    return tuple(
        (re.compile(pattern, flags), _apart(words))
        for pattern, flags, words in (
            (r"\bSt\.(?!\s+[A-Z])", 0, lambda _: "street"),
            (rf"(?<![\w.])({abbreviations})\.(?=[\s,;:)]|$)", re.IGNORECASE, _abbreviated),
            (r"\bNo\.(?=\s*\d)", 0, lambda _: "number"),
            (rf"({sign})\s?((?:{_NUMBER})(?:\.\d+)?\s(?:{_SCALES}))\b", 0, _much_money),
            (rf"({sign})\s?({_NUMBER})(?:\.(\d\d))?(?!\.?\d)", 0, _money),
            (rf"({sign})\s?((?:{_NUMBER})\.\d+)", 0, _much_money),
            (r"\b([01]?\d|2[0-4]):([0-5]\d)\b(?!:)(?=(\s*[ap]\.?\s?m\b)?)", re.IGNORECASE, _time),
            (rf"\b({_NUMBER})(?:st|nd|rd|th)\b", re.IGNORECASE, lambda its: _ordinal(its[1])),
            (r"['\u2019]?\b((?:1\d|20)?)([1-9])0['\u2019]?s\b", 0, _decade),
            (r"(?<![/\d])(\d+)/(\d+)\b(?!/)", 0, _fraction),
            (r"(?<!\d)(?:\(?\d{3}\)?[-\s])?\d{3}-\d{4}\b", 0, lambda its: _digits(re.sub(r"\D", "", its[0]))),
            (rf"(?<=[\d%])\s?[-\u2013\u2014]\s?(?={sign}?\d)", 0, lambda _: "to"),
            (r"(?<![\w.])[-\u2212](?=\d)", 0, lambda _: "minus"),
            (rf"((?:{_NUMBER})(?:\.\d+)+)", 0, lambda its: _decimal(its[1])),
            (rf"({_NUMBER})", 0, lambda its: _number(its[1])),
            (f"[{re.escape(''.join([*_MONEY, *_SIGNS]))}]", 0, lambda its: _sign(its[0])),
        )
    )


def _apart(words: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
    return lambda found: f" {words(found)} "


@functools.cache
def _inflect() -> Any:
    import inflect

    return inflect.engine()


def _cardinal(figures: str) -> str:
    words: str = _inflect().number_to_words(figures, andword="")
    return re.sub("[-,]", " ", words)


def _digits(figures: str) -> str:
    return " ".join(_cardinal(figure) for figure in figures)


def _number(figures: str) -> str:
    """A year if it may be one, digits where they are no quantity, else a cardinal."""
    plain = figures.replace(",", "")
    if figures == plain and re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", plain):
        return _year(plain)
    if (plain[0] == "0" and plain != "0") or len(plain) > _LONGEST or (figures == plain and len(plain) >= 7):
        return _digits(plain)
    return _cardinal(plain)


def _year(figures: str) -> str:
    century, rest = figures[:2], figures[2:]
    if rest == "00":
        return f"{_cardinal(century)} hundred"
    return f"{_cardinal(century)} {'oh ' if rest[0] == '0' else ''}{_cardinal(rest)}"


def _decade(its: re.Match[str]) -> str:
    tens = _inflect().plural(_cardinal(its[2] + "0"))
    return f"{_cardinal(its[1])} {tens}" if its[1] else tens


def _ordinal(figures: str) -> str:
    words: str = _inflect().ordinal(_inflect().number_to_words(figures.replace(",", ""), andword=""))
    return re.sub("[-,]", " ", words)


def _decimal(figures: str) -> str:
    whole, *parts = figures.split(".")
    first = _number(whole) if len(whole) > 1 and whole[0] == "0" else _cardinal(whole.replace(",", ""))
    return " point ".join([first, *(_digits(part) for part in parts)])


def _money(its: re.Match[str]) -> str:
    counts = int(its[2].replace(",", "")), int(its[3] or 0)
    parts = zip(counts, _MONEY[its[1]], strict=True)
    named = [f"{_cardinal(str(count))} {_several(unit, count)}" for count, unit in parts if count]
    return " and ".join(named) or f"zero {_several(_MONEY[its[1]][0], 0)}"


def _much_money(its: re.Match[str]) -> str:
    figures, *scale = its[2].split()
    return " ".join([_decimal(figures), *scale, _several(_MONEY[its[1]][0], 2)])


def _several(unit: str, count: int) -> str:
    irregular = {"penny": "pence", "yen": "yen", "sen": "sen"}
    return unit if count == 1 else irregular.get(unit, f"{unit}s")


def _time(its: re.Match[str]) -> str:
    hour, minutes, half = _cardinal(str(int(its[1]))), its[2], its[3]
    if minutes == "00":
        return hour if half else f"{hour} o'clock"
    return f"{hour} {'oh ' if minutes[0] == '0' else ''}{_cardinal(str(int(minutes)))}"


def _fraction(its: re.Match[str]) -> str:
    between = "over" if int(its[1]) < int(its[2]) else ""  # such as 24/7
    return _FRACTIONS.get((its[1], its[2]), f"{_number(its[1])} {between} {_number(its[2])}")


def _abbreviated(its: re.Match[str]) -> str:
    return _ABBREVIATIONS[its[1].lower()]


def _sign(sign: str) -> str:
    return _SIGNS.get(sign) or _several(_MONEY[sign][0], 2)
