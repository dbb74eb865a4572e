"""Measured beside printed: means, deviations, drops and improvements, by hand."""

from __future__ import annotations

import math

import pytest

from sparq.config import QuantizationRow
from sparq.paper.comparison import Value, as_data, compare
from sparq.paper.grid import Cell, Line, lines
from sparq.paper.layout import as_markdown, as_text, grids, value
from sparq.paper.printed import Printed
from sparq.paper.scale import Adaptation

LORA = Adaptation("lora")


def result(*scores: float, accuracy: float = 50.0) -> dict:
    names = ("text_perplexity", "speech_perplexity", "asr_wer", "tts_wer")
    return {
        "scores": dict(zip(names, scores, strict=True)),
        "accuracy": {"asr": accuracy, "tts": accuracy + 10},
        "outliers": {"speech with text": {"maximum_infinity_norm": 7.0, "average_kurtosis": 3.0}},
    }


def table() -> list[Line]:
    return [
        Line("vanilla", "full", "W16A16", Cell("none"), {}),
        Line("vanilla", "lora", "W16A16", Cell("none", LORA), {}),
        Line("sparq", "full", "W16A16", Cell("max"), {}),
        Line("sparq", "lora", "W16A16", Cell("max", LORA), {}),
    ]


MEASURED = {
    Cell("none"): [result(10, 20, 30, 40), result(20, 40, 60, 80)],
    Cell("none", LORA): [result(20, 40, 60, 80), result(20, 40, 60, 80)],  # drops 100 and 0 percent
    Cell("max"): [result(10, 20, 30, 40), result(10, 20, 30, 40)],
    Cell("max", LORA): [result(11, 22, 33, 44), result(13, 26, 39, 52, accuracy=54)],  # drops 10 and 30 percent
}


def test_means_deviations_and_drops_of_the_same_seed():
    rows = compare(table(), MEASURED)
    assert rows[0].drop is None
    assert rows[1].drop == Value(50, pytest.approx(100 / math.sqrt(2)))
    assert rows[3].drop == Value(pytest.approx(20), pytest.approx(20 / math.sqrt(2)))
    assert rows[3].scores["asr_wer"] == Value(36, pytest.approx(6 / math.sqrt(2)))
    assert rows[3].accuracy == Value(57, pytest.approx(4 / math.sqrt(2)))
    one = compare(table(), {cell: results[:1] for cell, results in MEASURED.items()})
    assert one[3].scores["asr_wer"] == Value(33, None)


def test_improvement_both_ways():
    rows = compare(table(), MEASURED)
    assert rows[3].improvement_of_drops == pytest.approx(100 * (1 - 20 / 50))
    assert rows[3].improvement_of_scores == pytest.approx(100 * (1 - 12 / 20))
    assert rows[2].improvement_of_drops is None  # a baseline has no drop
    assert rows[2].improvement_of_scores == pytest.approx(100 * (1 - 10 / 15))
    assert rows[0].improvement_of_scores is None
    unharmed = {**MEASURED, Cell("none", LORA): MEASURED[Cell("none")]}
    assert compare(table(), unharmed)[3].improvement_of_drops is None  # of nothing there is no share


def test_a_score_of_zero_has_no_drop_relative_to_it():
    measured = {**MEASURED, Cell("none"): [result(10, 20, 0, 40)] * 2}
    row = compare(table(), measured)[1]
    assert row.drop is None
    assert as_data(row)["measured"]["average_drop"] is None


def kept(name: str, *results: dict) -> dict:
    """What is kept of a table all of whose cells came out the same."""
    asked = lines(name, QuantizationRow())
    rows = compare(asked, {line.cell: list(results) for line in asked})
    return {"table": name, "stands_for": "OPT-125m", "rows": [as_data(row) for row in rows]}


def test_measured_and_printed_numbers_have_columns_of_their_own():
    (_, (head, rows)), (_, (better_head, better)) = grids(kept("2", result(10, 20, 30, 40)))
    assert len(rows) == 9
    row = dict(zip(head, rows[2], strict=True))
    printed = next(line.printed["OPT-125m"] for line in lines("2", QuantizationRow()) if line.cell == list_cell())
    assert isinstance(printed, Printed)
    assert row["OPT-125m: text ppl"] == f"{printed.scores.text_perplexity:.2f}"
    assert row["ASR WER"] == f"{printed.scores.asr_wer:.2f}"  # the later column of that name is the printed one
    assert rows[2][head.index("ASR WER")] == "30.0"
    assert rows[2][head.index("drop %")] == "0.0"
    assert rows[2][-1] == "12.06"
    at_350m = {**kept("2", result(10, 20, 30, 40)), "stands_for": "OPT-350m"}
    assert grids(at_350m)[0][1][1][1][-1] == "233.98≠"  # does not follow from its row
    assert len(better) == 6
    assert [row[better_head.index("of scores")] for row in better] == ["0.0"] * 6


def list_cell() -> Cell:
    return Cell("none", Adaptation("qlora", bits=8))


def test_accuracies():
    ((_, (_, rows)),) = grids(kept("4", result(1, 1, 1, 1), result(1, 1, 1, 1, accuracy=52)))
    assert [row[-2:] for row in rows] == [
        ["56.00 ± 1.41", text] for text in ("NaN loss", "NaN loss", "34.6", "NaN loss")
    ]


def test_layout_is_the_same_table_twice():
    grid = (["a", "number"], [["long name", "1.5"], ["b", "–"]])
    assert as_text(grid) == "a          number\nlong name     1.5\nb               –"
    assert as_markdown(grid) == "| a | number |\n| --- | ---: |\n| long name | 1.5 |\n| b | – |\n"
    assert value({"mean": 2.25, "deviation": None}) == "2.2"
    assert value(None) == "–"
