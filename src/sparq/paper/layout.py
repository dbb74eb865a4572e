"""How a measured table is shown: one layout for the terminal and for Markdown, out of the JSON that is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparq.evaluation.degradation import Scores
from sparq.paper.comparison import SCORES
from sparq.paper.grid import BY_ACCURACY, SCORED
from sparq.paper.printed import TITLES, drop_improvement, score_improvement

Data = Mapping[str, Any]
Grid = tuple[list[str], list[list[str]]]
"""Heads of columns, and rows of texts."""

_SCORES = {
    "text ppl": "text_perplexity",
    "speech ppl": "speech_perplexity",
    "ASR WER": "asr_wer",
    "TTS WER": "tts_wer",
    "drop %": "average_drop",
}
_WRONG = "≠"
NOTHING = "–"


def grids(kept: Data) -> list[tuple[str, Grid]]:
    """Lay out what is kept of a table: its caption and cells, and those of the improvements where it has any.

    Args:
        kept: what ``sparq paper run --json`` prints.
    """
    table = kept["table"]
    if table in SCORED:
        return [("", _scores(kept)), (_IMPROVED, _improvements(kept))]
    if table in BY_ACCURACY:
        return [("", _accuracies(kept))]
    if table == "3":
        return [("measured", _times(kept)), ("printed", _others(kept))]
    if table == "11":
        return [("", _shares(kept))]
    return [("", _bars(kept) if table == "figure3" else _heads(kept))]


_IMPROVED = "better than the ordinary attention by so many percent, of its drop and of its scores"


def title(kept: Data) -> str:
    """Name a table and what it is about."""
    table = kept["table"]
    return f"Table {table}, {TITLES[table]}" if table in TITLES else str(kept["title"])


def as_text(grid: Grid) -> str:
    """Align a grid for a terminal."""
    head, rows = grid
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    left = _left(grid)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def as_markdown(grid: Grid) -> str:
    """Write a grid as a Markdown table."""
    head, rows = grid
    left = _left(grid)
    marks = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows)) + "\n"


def _left(grid: Grid) -> int:
    """Count the columns at the beginning that hold names, not numbers."""
    named = 0
    for column in zip(*grid[1], strict=True):
        if any(cell[:1].isdigit() or cell[:1] in "-−–" for cell in column):
            break
        named += 1
    return named


def value(measured: Data | None, digits: int = 1) -> str:
    """Write a number over seeds as "12.3 ± 0.4"."""
    if measured is None:
        return NOTHING
    text = f"{measured['mean']:.{digits}f}"
    return text if measured["deviation"] is None else f"{text} ± {measured['deviation']:.{digits}f}"


def _number(number: float | None, digits: int = 1) -> str:
    return NOTHING if number is None else f"{number:.{digits}f}"


def _beside(kept: Data, row: Data) -> Any:
    """Give what is printed of a row: of the model that the scale stands for, or else of the only one."""
    return row["printed"].get(_printed_of(kept, row))


def _printed_of(kept: Data, row: Data) -> str:
    """Name the model whose numbers are printed of a row."""
    printed, wanted = row["printed"], kept["stands_for"]
    return wanted if wanted in printed else next(iter(printed), wanted)


def _scores(kept: Data) -> Grid:
    model = _printed_of(kept, kept["rows"][0])
    head = ["attention", "sink", "adaptation, quantisation", "bits", *_SCORES]
    head += [f"{model}: {name}" if i == 0 else name for i, name in enumerate(_SCORES)]
    rows = []
    for row in kept["rows"]:
        printed = _beside(kept, row)
        beside = [_number(printed[name], 2) for name in _SCORES.values()]
        beside[-1] += _WRONG if printed["follows"] is False else ""
        measured = [value(row["measured"][name]) for name in _SCORES.values()]
        rows.append([row["attention"], row["sink"], row["setting"], row["bits"], *measured, *beside])
    return head, rows


def _improvements(kept: Data) -> Grid:
    head = ["sink", "adaptation, quantisation", "bits", "of drops", "of scores"]
    printed: dict[tuple[str, str], dict[str, Any]] = {
        (row["setting"], row["bits"]): _beside(kept, row) for row in kept["rows"] if row["attention"] == "vanilla"
    }
    head += [f"{_printed_of(kept, kept['rows'][0])}: of drops", "of scores"]
    rows = []
    for row in kept["rows"]:
        ordinary = printed.get((row["setting"], row["bits"]))
        if row["attention"] == "vanilla" or ordinary is None:
            continue
        ours, measured = _beside(kept, row), row["measured"]
        of_drops = drop_improvement(ours["recomputed_drop"], ordinary["recomputed_drop"])
        of_scores = score_improvement(*(Scores(**{name: one[name] for name in SCORES}) for one in (ours, ordinary)))
        rows.append([
            row["sink"], row["setting"], row["bits"],
            *(_number(measured[name]) for name in ("improvement_of_drops", "improvement_of_scores")),
            _number(of_drops), _number(of_scores),
        ])  # fmt: skip
    return head, rows


def _accuracies(kept: Data) -> Grid:
    head = ["attention", "sink", "setting", "accuracy %", "printed"]
    rows = [
        [row["attention"], row["sink"], row["setting"], value(row["measured"]["next_token_accuracy"], 2),
         _beside(kept, row)]
        for row in kept["rows"]
    ]  # fmt: skip
    return head, rows


def _times(kept: Data) -> Grid:
    head = ["sink", "seconds a step", "minutes an epoch", "to the ordinary attention's"]
    rows = [
        [
            row["sink"],
            _number(row["seconds_per_step"], 3),
            _number(row["minutes_per_epoch"], 2),
            _number(row["ratio"], 2),
        ]
        for row in kept["rows"]
    ]
    return head, rows


def _others(kept: Data) -> Grid:
    printed: Sequence[Data] = kept["printed"]
    return ["model", "attention", "minutes an epoch"], [[o["model"], o["attention"], o["value"]] for o in printed]


def _shares(kept: Data) -> Grid:
    head = ["model", "printed, million", "printed %", "E.1 (256, q k v o MLP), million", "%"]
    head += ["rank 128, q k v o, million", "%"]
    rows = []
    for row in kept["rows"]:
        counts = [row["stated"], row["found"]]
        counted = [(count["adapters"] / 1e6, 100 * count["adapters"] / count["model"]) for count in counts]
        numbers = [(row["printed"] / 1e6, row["printed_percent"]), *counted]
        rows.append([row["model"], *(_number(number) for pair in numbers for number in pair)])
    return head, rows


def _bars(kept: Data) -> Grid:
    head = ["adaptation", "sink", "measured on", "max. infinity norm", "avg. kurtosis"]
    rows = [
        [
            row["adaptation"],
            row["sink"],
            row["kind"],
            value(row["maximum_infinity_norm"]),
            value(row["average_kurtosis"], 2),
        ]
        for row in kept["rows"]
    ]
    return head, rows


def _heads(kept: Data) -> Grid:
    head = ["sink", "attention to the first token %", "withheld %", "largest value", "largest weighted value"]
    rows = [
        [row["sink"], *(_number(100 * row[name]) for name in ("first_token_attention", "withheld_attention")),
         *(_number(row[name], 2) for name in ("largest_value", "largest_weighted_value"))]
        for row in kept["rows"]
    ]  # fmt: skip
    return head, rows
