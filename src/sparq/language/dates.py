"""Dates, decades and times of day as they are said."""

from __future__ import annotations

import re

from sparq.language.numbers import NUMBER, cardinal, number, ordinal, several, two_digits

_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_SHORT = {month[:3]: month for month in _MONTHS if month != "may"} | {"sept": "september"}
# "may" and "march" are words, too
_MONTH = rf"(?:(?i:{'|'.join(one for one in [*_MONTHS, *_SHORT] if one not in {'may', 'march', 'mar'})})|May|March|Mar)"
_DAY = r"(?:[12]\d|3[01]|0?[1-9])"
_ISO = r"(?<![\w-])((?:1\d|20)\d\d)-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(?![\d-])(?:T(?=\d))?"
_MONTH_AND_DAY = (
    rf"(?<![^\W\d])(?<!\.)({_MONTH})\b\.?\s+({_DAY})(?:\s?[-\u2013]\s?({_DAY}))?"
    r"(?![\w:/%\u00b0]|[.,]\d|\s(?:percent|per cent|thousand|million|billion)\b)"
    rf"(\s?[-\u2013]\s?(?={_MONTH}\b))?"
)
_DAY_AND_MONTH = rf"(?<![\w.,:/-])({_DAY})\s+({_MONTH})\b\.?(?=,?\s+\d{{4}}\b)"
_TIME = r"\b([01]?\d|2[0-4]):([0-5]\d)(?![\d:]|\.\d)(?=(\s*[ap]\.?\s?m\b)?)"


def _month(written: str) -> str:
    return _SHORT.get(written.lower(), written)


def _month_and_day(its: re.Match[str]) -> str:
    last = f" to {ordinal(str(int(its[3])))}" if its[3] else ""
    return f"{_month(its[1])} {ordinal(str(int(its[2])))}{last}{' to' if its[4] else ''}"


def _iso(its: re.Match[str]) -> str:
    return f"{_MONTHS[int(its[2]) - 1]} {ordinal(str(int(its[3])))} {number(its[1])}"


def _decade(its: re.Match[str]) -> str:
    return f"{cardinal(its[1])} {several(its[2] + '0')}" if its[1] else several(its[2] + "0")


def _time(its: re.Match[str]) -> str:
    hour = cardinal(str(int(its[1])))
    if its[2] == "00":
        return hour if its[3] else f"{hour} o'clock"
    return f"{hour} {two_digits(its[2])}"


DATES = (
    (_ISO, 0, _iso),
    (_MONTH_AND_DAY, 0, _month_and_day),
    (_DAY_AND_MONTH, 0, lambda its: f"the {ordinal(str(int(its[1])))} of {_month(its[2])}"),
    (r"(?<![\w.,])((?:1[1-9]|20)\d\d)[-\u2013](0[1-9])(?!\d)", 0, lambda its: f"{its[1]} to {two_digits(its[2])}"),
)
TIMES = (
    (_TIME, re.IGNORECASE, _time),
    (r"['\u2019]?\b((?:1\d|20)?)([1-9])0['\u2019]?s\b", 0, _decade),
    (r"\b((?:1[1-9]|20)00)['\u2019]?s\b", 0, lambda its: several(its[1])),
    (rf"\b({NUMBER})(?<=\d\d\d)s\b", 0, lambda its: several(its[1])),
    (r"(?<!\w)['\u2019](\d\d)\b", 0, lambda its: two_digits(its[1])),
)
