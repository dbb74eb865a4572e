"""Model cards: the README.md of a model's folder, which says what it is, how it was made, and what it can do."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load
from yaml import YAMLError

from sparq.artifacts import write_text

CARD = "README.md"
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """The facts of a card; a section without any is left out.

    Attributes:
        title: what the model is called.
        summary: one paragraph.
        base: the model that it was made from, or None for one made from nothing.
        licence: of the weights, as the Hugging Face hub abbreviates it ("apache-2.0"), or ``UNKNOWN``.
        licence_note: what else binds who uses the model.
        tags: for those who look for models.
        usage: how it is used, a shell command a line.
        data: what it learnt from: name → figure.
        method: how: name → setting.
        columns: headings of the numbers.
        measured: name of a measure → a number for each column, None where it was not taken.
        measured_on: on what, and how.
        limits: what it cannot do, and what the numbers do not say.
        made: when, and by what: name → value.
    """

    title: str
    summary: str
    base: str | None = None
    licence: str = UNKNOWN
    licence_note: str = ""
    tags: Sequence[str] = ("speech", "automatic-speech-recognition", "text-to-speech", "sparq")
    usage: Sequence[str] = ()
    data: Mapping[str, object] = dataclasses.field(default_factory=dict)
    method: Mapping[str, object] = dataclasses.field(default_factory=dict)
    columns: Sequence[str] = ()
    measured: Mapping[str, Sequence[float | None]] = dataclasses.field(default_factory=dict)
    measured_on: str = ""
    limits: Sequence[str] = ()
    made: Mapping[str, object] = dataclasses.field(default_factory=dict)


def model_card(card: Card) -> str:
    """Write a card as Markdown, with the metadata that the Hugging Face hub reads in front."""
    metadata = ModelCardData(
        language="en",
        license=None if card.licence == UNKNOWN else card.licence,
        library_name="sparq",
        tags=list(card.tags),
    )  # base_model would have to be on the hub
    sections = {
        "Use": _code(card.usage),
        "Data": _table(("what", ""), card.data.items()),
        "Method": _table(("setting", ""), card.method.items()),
        "Measured": _measured(card),
        "Limits": "\n".join(f"- {_line(limit)}" for limit in card.limits),
        "Licence": _licence(card),
        "Made": _table(("what", ""), card.made.items()),
    }
    parts = [f"---\n{metadata.to_yaml()}\n---", f"# {_line(card.title)}", card.summary]
    parts += [f"## {heading}\n\n{body}" for heading, body in sections.items() if body]
    return "\n\n".join(parts) + "\n"


def card_licence(folder: Path) -> str:
    """Read the licence that the card in a model's folder names, ``UNKNOWN`` if there is none."""
    try:
        licence = (metadata_load(Path(folder) / CARD) or {}).get("license")
    except (OSError, ValueError, YAMLError):
        licence = None
    return licence if isinstance(licence, str) else UNKNOWN


def read_card(folder: Path) -> str:
    """Read the card in a model's folder; an empty string if there is none."""
    card = Path(folder) / CARD
    return card.read_text(encoding="utf-8") if card.is_file() else ""


def write_card(folder: Path, card: str, told: str = "") -> None:
    """Take a card along to where its model is written once more, if there is one.

    Args:
        folder: where the model is written.
        card: what `read_card` gave, before an older folder may have been replaced.
        told: what became of the model, for a line below the title.
    """
    title = re.search(r"^# .*\n", card, re.MULTILINE)
    place = 0 if title is None else title.end()
    line = f"\n**{_line(told)}**\n" if told else ""
    if card:
        write_text(Path(folder) / CARD, card[:place] + line + card[place:])


def _measured(card: Card) -> str:
    rows = [(name, *map(_number, values)) for name, values in card.measured.items()]
    table = _table(("", *card.columns), rows, "---:")
    return "\n\n".join(filter(None, (table, card.measured_on)))


def _licence(card: Card) -> str:
    known = f"The base weights: {card.licence}." if card.base else f"The weights: {card.licence}."
    if card.licence == UNKNOWN:
        known = f"Not known: look up where {card.base or 'it'} came from before you pass the model on."
    return " ".join(filter(None, (known, card.licence_note)))


def _code(lines: Sequence[str]) -> str:
    return "```\n" + "\n".join(lines) + "\n```" if lines else ""


def _table(headings: Sequence[str], rows: Iterable[Iterable[object]], align: str = "---") -> str:
    cells = [[_line(str(cell)).replace("|", r"\|") for cell in row] for row in rows]
    if not cells:
        return ""
    ruler = ["---", *[align] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (list(headings), ruler, *cells))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"


def _line(text: str) -> str:
    """Put a text on one line, so that nothing in it can begin a heading or end a table."""
    return " ".join(text.split())
