"""Units of measure after a number, as they are said."""

from __future__ import annotations

import re

_UNITS = {
    "kg": "kilogram",
    "mg": "milligram",
    "lb": "pound",
    "lbs": "pound",
    "oz": "ounce",
    "tsp": "teaspoon",
    "tbsp": "tablespoon",
    "km": "kilometer",
    "cm": "centimeter",
    "mm": "millimeter",
    "ft": "foot",
    "ml": "milliliter",
    "mL": "milliliter",
    "kB": "kilobyte",
    "KB": "kilobyte",
    "MB": "megabyte",
    "GB": "gigabyte",
    "TB": "terabyte",
    "Hz": "hertz",
    "kHz": "kilohertz",
    "MHz": "megahertz",
    "GHz": "gigahertz",
    "kW": "kilowatt",
    "MW": "megawatt",
    "GW": "gigawatt",
    "kWh": "kilowatt hour",
    "ms": "millisecond",
    "sec": "second",
    "secs": "second",
    "min": "minute",
    "mins": "minute",
    "hr": "hour",
    "hrs": "hour",
    "km/h": "kilometer per hour",
    "kph": "kilometer per hour",
    "mph": "mile per hour",
    "m/s": "meter per second",
}
_UNIT = rf"({'|'.join(sorted(_UNITS, key=len, reverse=True))})(?![\w/])"
_LENGTHS = {"m": "meter"} | {short: _UNITS[short] for short in ("km", "cm", "mm", "ft")}
_POWERS = {"\u00b2": "square", "\u00b3": "cubic"}
_AREA = rf"(?<=\d)\s*({'|'.join(_LENGTHS)})([\u00b2\u00b3])"
_HEIGHT = r"(?<![\d.,])([1-9])['\u2019\u2032]\s?(1[01]|\d)(?!\w)(?:[\"\u201d\u2033])?"
_DEGREES = r"((?<![\d.,])1)?\s?\u00b0\s?(?:([CF])(?!\w))?"


def _several(unit: str) -> str:
    measured, per, rest = unit.partition(" per ")
    irregular = {"foot": "feet"}
    return f"{measured if measured.endswith('hertz') else irregular.get(measured, measured + 's')}{per}{rest}"


def _height(its: re.Match[str]) -> str:
    return f"{its[1]} feet" if its[2] == "0" else f"{its[1]} foot {its[2]}"


def _degrees(its: re.Match[str]) -> str:
    scale = {"C": "celsius", "F": "fahrenheit"}.get(its[2], "")
    return f"1 degree {scale}" if its[1] else f"degrees {scale}"


MEASURES = (
    (_HEIGHT, 0, _height),
    (_DEGREES, 0, _degrees),
    (_AREA, 0, lambda its: f"{_POWERS[its[2]]} {_several(_LENGTHS[its[1]])}"),
    (rf"(?<![\d.,/])1\s*{_UNIT}", 0, lambda its: f"1 {_UNITS[its[1]]}"),
    (rf"(?<=\d)-{_UNIT}", 0, lambda its: _UNITS[its[1]]),
    (rf"(?<=\d)\s*{_UNIT}", 0, lambda its: _several(_UNITS[its[1]])),
)
