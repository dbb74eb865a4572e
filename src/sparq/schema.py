"""Typed settings: plain data (YAML, JSON) into frozen dataclasses and back, with errors that say what was expected.

A dataclass is its own schema. Its annotations give the types (``int``, ``float``, ``str``, ``bool``, ``X | None``,
``tuple[X, ...]``, ``dict[str, X]``, other dataclasses), :func:`key` adds what an annotation cannot say, and
``__post_init__`` may raise a :class:`UserError` for rules that join several keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml

from sparq.errors import UserError

T = TypeVar("T")
_EXPONENT = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_SHOWN = 80


def key(
    default: Any = dataclasses.MISSING,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    choices: Iterable[str] | None = None,
    names: Iterable[str] | None = None,
    pattern: str | None = None,
) -> Any:
    """Declare a setting and what its values may be; for tuples and dictionaries the limits hold for each element.

    Args:
        default: value when the key is absent; without it the key is required.
        minimum: smallest number allowed.
        above: number that must be exceeded.
        maximum: largest number allowed.
        choices: the strings allowed.
        names: the keys that a dictionary may have.
        pattern: regular expression that a string must match as a whole.
    """
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "pattern": pattern}
    metadata: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    metadata |= {"choices": tuple(choices)} if choices is not None else {}
    metadata |= {"names": tuple(names)} if names is not None else {}
    return dataclasses.field(default=default, metadata=metadata)


def parse(cls: type[T], mapping: Any, where: str = "recipe") -> T:
    """Build a dataclass, and those inside it, from plain data.

    Args:
        cls: a dataclass.
        mapping: what YAML or JSON gave: a mapping whose keys are the names of the fields.
        where: the file (or command) the data came from; errors begin with it.

    Raises:
        UserError: unknown or missing key, wrong type, value out of range; names the path of the key and the value.
    """
    return _dataclass(cls, mapping, where, "")


def dump(value: Any) -> Any:
    """Turn a dataclass back into plain data: parsing what this gives makes an equal object."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: dump(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    return value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which known name a mistyped one is closest to, or which there are."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known) or 'none'}"


class _Loader(yaml.SafeLoader):
    """YAML as people write it: ``3e-4`` is a number (PyYAML reads a string), and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                continue
            if name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key given twice: {name.value}", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789."))


def read_yaml(text: str, where: str) -> Any:
    """Read YAML text into plain data.

    Raises:
        UserError: it is not YAML; names the line and what is wrong there.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{where}: {line}{error.problem or error.context} (expected YAML)") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {' '.join(str(error).split())} (expected YAML)") from error


def override(data: Any, assignment: str) -> Any:
    """Set one key of plain data, as ``adaptation.steps=100`` or ``corpus.sources.0.limit=5`` on a command line.

    Mappings on the way are made, places in lists must exist, but that the one behind a list's end makes it longer; the
    value is YAML. The data is changed and returned.

    Raises:
        UserError: it is not of this form, or leads nowhere.
    """
    name, equals, text = assignment.partition("=")
    if not equals or not all(name.split(".")):
        raise UserError(f"{assignment!r} (expected key=value, such as adaptation.steps=100)")
    *way, last = name.split(".")
    data = {} if data is None else data
    here = data
    for step in way:
        place = _place(here, step, assignment)
        if isinstance(here, dict) and here.get(place) is None:
            here[place] = {}
        here = here[place]
    if isinstance(here, list) and last == str(len(here)):
        here.append(None)
    here[_place(here, last, assignment)] = read_yaml(text, assignment)
    return data


def with_overrides(data: Any, assignments: Iterable[str]) -> Any:
    """Apply ``key=value`` assignments one after another; the data is changed and returned."""
    for assignment in assignments:
        data = override(data, assignment)
    return data


def _place(here: Any, step: str, assignment: str) -> Any:
    """Find where one step of a dotted key leads: a key of a mapping, an index of a list."""
    if isinstance(here, list):
        if not (step.isdecimal() and int(step) < len(here)):
            raise UserError(f"{assignment}: {step} is not a place in a list of {len(here)}")
        return int(step)
    if not isinstance(here, dict):
        raise UserError(f"{assignment}: unknown key (what comes before {step} has no keys)")
    return step


def _error(where: str, path: str, value: Any, expected: str) -> UserError:
    """Build the one line that every bad value ends in."""
    shown = (
        reprlib.repr(value)
        if isinstance(value, (Mapping, list))
        else json.dumps(value, ensure_ascii=False, default=str)
    )
    shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 1]}…"
    place = f"{where}: {path}" if path else where
    return UserError(f"{place}: {shown} (expected {expected})")


def _join(path: str, name: object) -> str:
    shown = str(name) if str(name).isprintable() else repr(name)
    return f"{path}.{shown}" if path else shown


def _dataclass(cls: type[T], value: Any, where: str, path: str) -> T:
    if not isinstance(value, Mapping):
        raise _error(where, path, value, "keys and values")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for name in value:
        if name not in fields:
            raise UserError(f"{where}: {_join(path, name)}: unknown key ({did_you_mean(str(name), fields)})")
    given = {}
    for name, field in fields.items():
        here = _join(path, name)
        if name in value:
            given[name] = _value(hints[name], value[name], field.metadata, where, here)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: {here}: missing (expected {_expected(hints[name], field.metadata)})")
    try:
        return cls(**given)
    except UserError as error:
        raise UserError(f"{where}: {_join(path, error)}") from error


def _value(kind: Any, value: Any, limits: Mapping[str, Any], where: str, path: str) -> Any:
    """Check one value against a type and its limits, and bring it into that type."""
    asked, origin, arguments = kind, typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        rest = [a for a in arguments if a is not type(None)]
        if len(rest) != 1:
            raise TypeError(f"{path}: {kind} is not a type that settings can have")
        origin, arguments, kind = typing.get_origin(rest[0]), typing.get_args(rest[0]), rest[0]
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast("type[Any]", kind), value, where, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _error(where, path, value, "a list")
        return tuple(_value(arguments[0], item, limits, where, _join(path, i)) for i, item in enumerate(value))
    if origin is dict:
        return _dictionary(arguments[1], value, limits, where, path)
    if not _fits(kind, value, limits):
        raise _error(where, path, value, _expected(asked, limits))
    return float(value) if kind is float else value


def _dictionary(kind: Any, value: Any, limits: Mapping[str, Any], where: str, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _error(where, path, value, "keys and values")
    names = limits.get("names", tuple(value))
    for name in value:
        if name not in names or not isinstance(name, str):
            raise UserError(f"{where}: {_join(path, name)}: unknown key ({did_you_mean(str(name), map(str, names))})")
    return {name: _value(kind, item, limits, where, _join(path, name)) for name, item in value.items()}


def _fits(kind: Any, value: Any, limits: Mapping[str, Any]) -> bool:
    """Tell whether a number, text or truth value is of a type and within its limits."""
    if not isinstance(value, (int, float) if kind is float else kind):
        return False
    if kind is bool or isinstance(value, bool):
        return kind is bool  # a truth value is a whole number to Python, but "steps: true" is a mistake
    if isinstance(value, str):
        return value in limits.get("choices", (value,)) and bool(re.fullmatch(limits.get("pattern", "(?s:.*)"), value))
    return (
        math.isfinite(value)
        and value >= limits.get("minimum", -math.inf)
        and value > limits.get("above", -math.inf)
        and value <= limits.get("maximum", math.inf)
    )


def _expected(kind: Any, limits: Mapping[str, Any]) -> str:
    """Say in words what a value of this type and these limits is."""
    arguments = typing.get_args(kind)
    if type(None) in arguments:
        rest = next(a for a in arguments if a is not type(None))
        return f"{_expected(rest, limits)}, or null"
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict:
        return "keys and values"
    if typing.get_origin(kind) is tuple:
        return "a list"
    if "choices" in limits:
        return f"one of {', '.join(limits['choices'])}"
    if "pattern" in limits:
        return f"text of the form {limits['pattern']}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    if "minimum" in limits and "maximum" in limits:
        return f"{words} from {limits['minimum']:g} to {limits['maximum']:g}"
    signs = {"minimum": "≥", "above": ">", "maximum": "≤"}
    bounds = " and ".join(f"{sign} {limits[name]:g}" for name, sign in signs.items() if name in limits)
    return f"{words} {bounds}".strip()
