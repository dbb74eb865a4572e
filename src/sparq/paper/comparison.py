"""What was measured of a table, beside what is printed: mean and deviation over seeds, drops, improvements.

A number of the paper and a measured one never share a column. The average drop of a line is against the fully
fine-tuned model of the same attention and seed (:func:`sparq.evaluation.degradation.average_drop`); the improvement
over the ordinary attention is computed both ways (:class:`sparq.paper.printed.Improvement`).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sparq.errors import UserError
from sparq.evaluation.degradation import Scores, average_drop
from sparq.paper.grid import Cell, Line
from sparq.paper.printed import Printed, drop_improvement, score_improvement

SCORES = tuple(field.name for field in dataclasses.fields(Scores))


@dataclasses.dataclass(frozen=True)
class Value:
    """A number over seeds.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation; None for one seed.
    """

    mean: float
    deviation: float | None = None

    @classmethod
    def over(cls, numbers: Sequence[float]) -> Value:
        """Take mean and deviation of one number a seed."""
        return cls(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table with what was measured of it.

    Attributes:
        line: what it is of, and what is printed.
        scores: name of a score → its value.
        accuracy: next-token accuracy in percent, mean over the four tasks.
        drop: average drop in percent; None for the baseline itself, or where a baseline's score is 0.
        maximum_infinity_norm, average_kurtosis: of speech with text.
        improvement_of_drops, improvement_of_scores: over the ordinary attention in the same setting, in percent; None
            for the ordinary attention, and the first of them where that has no drop above 0.
    """

    line: Line
    scores: Mapping[str, Value]
    accuracy: Value
    drop: Value | None
    maximum_infinity_norm: Value
    average_kurtosis: Value
    improvement_of_drops: float | None = None
    improvement_of_scores: float | None = None


def compare(lines: Sequence[Line], measured: Mapping[Cell, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Put what was measured of every cell into the lines of a table.

    Args:
        lines: of the table.
        measured: cell → for each seed what :func:`sparq.evaluation.scoring.assess` found, baselines included.
    """
    rows = [_row(line, measured) for line in lines]
    ordinary = {_place(row.line): row for row in rows if row.line.attention == "vanilla"}
    return [_improved(row, ordinary.get(_place(row.line))) for row in rows]


def _place(line: Line) -> tuple[str, str]:
    return line.setting, line.bits


def _row(line: Line, measured: Mapping[Cell, Sequence[Mapping[str, Any]]]) -> Row:
    results = measured[line.cell]
    outliers = [one["outliers"]["speech with text"] for one in results]
    return Row(
        line,
        {name: Value.over([one["scores"][name] for one in results]) for name in SCORES},
        Value.over([statistics.fmean(one["accuracy"].values()) for one in results]),
        _drop(line.cell, measured),
        Value.over([one["maximum_infinity_norm"] for one in outliers]),
        Value.over([one["average_kurtosis"] for one in outliers]),
    )


def _drop(cell: Cell, measured: Mapping[Cell, Sequence[Mapping[str, Any]]]) -> Value | None:
    if cell == cell.baseline:
        return None
    pairs = zip(measured[cell.baseline], measured[cell], strict=True)
    try:
        return Value.over(
            [average_drop(Scores(**before["scores"]), Scores(**after["scores"])) for before, after in pairs]
        )
    except UserError:  # a score of 0 before, relative to which nothing is
        return None


def _improved(row: Row, ordinary: Row | None) -> Row:
    if ordinary is None or row is ordinary:
        return row
    ours, theirs = (Scores(**{name: one.scores[name].mean for name in SCORES}) for one in (row, ordinary))
    drops = [None if one.drop is None else one.drop.mean for one in (row, ordinary)]
    of_drops, of_scores = drop_improvement(*drops), score_improvement(ours, theirs)
    return dataclasses.replace(row, improvement_of_drops=of_drops, improvement_of_scores=of_scores)


def as_data(row: Row) -> dict[str, Any]:
    """Give a row as plain data, for JSON."""
    line = row.line
    return {
        "attention": line.attention,
        "sink": line.cell.sink,
        "setting": line.setting,
        "bits": line.bits,
        "measured": {
            **{name: dataclasses.asdict(value) for name, value in row.scores.items()},
            "next_token_accuracy": dataclasses.asdict(row.accuracy),
            "average_drop": None if row.drop is None else dataclasses.asdict(row.drop),
            "maximum_infinity_norm": dataclasses.asdict(row.maximum_infinity_norm),
            "average_kurtosis": dataclasses.asdict(row.average_kurtosis),
            "improvement_of_drops": row.improvement_of_drops,
            "improvement_of_scores": row.improvement_of_scores,
        },
        "printed": {model: one if isinstance(one, str) else _printed(one) for model, one in line.printed.items()},
    }


def _printed(row: Printed) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row.scores),
        "average_drop": row.drop,
        "recomputed_drop": row.recomputed,
        "follows": row.follows,
    }
