"""Sums of money as they are said: the unit after the number, "$1.5M" as "one point five million dollars"."""

from __future__ import annotations

import re

from sparq.language.numbers import AMOUNT, cardinal, decimal

CURRENCIES = {
    "US$": ("US dollar", "cent"),
    "$": ("dollar", "cent"),
    "£": ("pound", "penny"),
    "€": ("euro", "cent"),
    "¥": ("yen", ""),
}
CURRENCY = r"(?:(?<![\w.])US\$|[$\u00a3\u20ac\u00a5])"
_SCALES = {"k": "thousand", "m": "million", "b": "billion", "t": "trillion"}
_SCALE = r"(?:\s?(?:hundred|thousand|million|billion|trillion|[MmBbTt]n)|[KkMmBbTt])\b"
_PER = rf"({CURRENCY}\s?{AMOUNT}(?:{_SCALE})?)/(?=[a-z])"
_RANGE = rf"({CURRENCY})\s?({AMOUNT})({_SCALE})?\s?[-\u2013]\s?(?:\1\s?)?({AMOUNT})({_SCALE})?(?!\.?\d|\s?=)"
_SUM = rf"({CURRENCY})\s?({AMOUNT})({_SCALE})?(?!\.?\d)"


def unit(sign: str) -> str:
    """What several of a currency are called."""
    return _named(CURRENCIES[sign][0], 2)


def scale(written: str) -> str:
    """Thousands and more, written out or not: M and mn are "million"."""
    written = written.strip()
    return _SCALES[written[0].lower()] if len(written) <= 2 else written


def _named(unit: str, count: int) -> str:
    irregular = {"penny": "pence", "yen": "yen"}
    return unit if count == 1 else irregular.get(unit, f"{unit}s")


def _has_cents(sign: str, figures: str) -> bool:
    return bool(CURRENCIES[sign][1] and re.search(r"\.\d\d$", figures))


def _amount(figures: str, scaled: str | None) -> str:
    return f"{decimal(figures)} {scale(scaled)}" if scaled else decimal(figures)


def _sum(sign: str, figures: str, scaled: str | None) -> str:
    """Whole units and cents where it is written so, else a decimal number of units."""
    if scaled or ("." in figures and not _has_cents(sign, figures)):
        return f"{_amount(figures, scaled)} {unit(sign)}"
    whole, _, rest = figures.replace(",", "").partition(".")
    counts = int(whole or 0), int(rest or 0)
    parts = zip(counts, CURRENCIES[sign], strict=True)
    named = [f"{cardinal(str(count))} {_named(unit, count)}" for count, unit in parts if count]
    return " and ".join(named) or f"zero {unit(sign)}"


def _range(its: re.Match[str]) -> str:
    sign, low, low_scale, high, high_scale = its.groups()
    if _has_cents(sign, low) or _has_cents(sign, high):
        return f"{_sum(sign, low, low_scale)} to {_sum(sign, high, high_scale)}"
    return f"{_amount(low, low_scale)} to {_amount(high, high_scale)} {unit(sign)}"


RANGES = ((_PER, 0, lambda its: f"{its[1]} per"), (_RANGE, 0, _range))
SUMS = (
    (_SUM, 0, lambda its: _sum(its[1], its[2], its[3])),
    (r"(?<![\d.,])1\s?\u00a2", 0, lambda _: "one cent"),
    (r"(?<=\d)\s?([MmBbTt]n)\b", 0, lambda its: scale(its[1])),
)
