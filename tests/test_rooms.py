"""The rooms of the house, from low to high (docs/architecture.md): a file imports from its own room and lower ones."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sparq

SOURCE = Path(sparq.__file__).parent
ROOMS = (
    ("errors", "artifacts", "assets", "schema", "config", "recipe", "processes", "device", "stages", "progress"),
    ("attention",), ("speech",), ("quantization",), ("deployment",), ("language",), ("corpus",), ("adaptation",),
    ("evaluation",), ("making",), ("finetuning",), ("pipeline",), ("paper",), ("commands",), ("cli",),
)  # fmt: skip
FLOORS = {name: floor for floor, names in enumerate(ROOMS) for name in names}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py" or path.parent != SOURCE)


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Names of the rooms that a file imports from, wherever in it; ``sparq`` itself is the public face."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name and name.startswith("sparq."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_imports_from_a_higher_room(path):
    assert all(FLOORS[name] <= FLOORS[room(path)] for name in imported(path))


def test_the_map_names_every_file():
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_0-9]+)`", page)) | {name for names in ROOMS[-6:] for name in names}
    stems = {path.stem for path in FILES if path.name != "__init__.py" and room(path) != "config"}
    assert stems <= named, sorted(stems - named)
