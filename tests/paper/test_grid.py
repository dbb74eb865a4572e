"""The grid: every printed row has its lines, and lines about the same model share a cell."""

from __future__ import annotations

import pytest

from sparq.config import SINKS, QuantizationRow
from sparq.errors import UserError
from sparq.paper.grid import BY_ACCURACY, READINGS, SCORED, Cell, lines
from sparq.paper.printed import TITLES, Printed, other_table, scores_table
from sparq.paper.scale import Adaptation

ROW = QuantizationRow(epochs=3, calibration_sequences=64)


def cells(table: str) -> set[Cell]:
    return {line.cell for line in lines(table, ROW)}


@pytest.mark.parametrize("table", SCORED)
def test_every_printed_row_stands_beside_each_reading_of_it(table):
    made = lines(table, ROW)
    for printed in scores_table(table):
        beside = [line for line in made if printed in line.printed.values()]
        assert [line.cell.sink for line in beside] == list(READINGS[printed.setting.attention])
        for line in beside:
            assert line.printed[printed.setting.model] == printed
            assert line.bits == printed.setting.bits
            assert (line.cell.row is None) == (printed.setting.quantisation == "none")
    assert len({(line.attention, line.cell) for line in made}) == len(made)


@pytest.mark.parametrize("table", BY_ACCURACY)
def test_every_printed_accuracy_has_lines(table):
    made = lines(table, ROW)
    assert {(line.attention, line.setting) for line in made} == {(o.attention, o.setting) for o in other_table(table)}
    assert all(line.cell.sink in SINKS and line.cell.row is None for line in made)


def test_every_table_is_known():
    assert set(SCORED) | set(BY_ACCURACY) | {"3", "11"} == set(TITLES)


def test_tables_share_what_they_have_in_common():
    assert cells("1") < cells("6")
    assert {cell for cell in cells("9") if not cell.row.weight_clip_percent} < cells("6")
    assert len(cells("8") & cells("2")) == 3  # LoRA, not quantised
    assert {cell.baseline for table in SCORED for cell in cells(table)} == {
        Cell(sink) for sinks in READINGS.values() for sink in sinks
    }


def test_the_widths_of_table_10_are_those_of_the_base():
    """Its rows at 8 bits repeat Table 2's QLoRA with LLM.int8, up to a hundredth."""
    at = {line.cell.adaptation.bits: line for line in lines("10", ROW) if line.attention == "vanilla"}
    assert set(at) == {4, 8}
    assert all(line.cell.adaptation.method == "qlora" and line.cell.row is None for line in at.values())
    twin = next(line for line in lines("2", ROW) if line.cell == at[8].cell)
    here, there = at[8].printed["OPT-350m"], twin.printed["OPT-350m"]
    assert isinstance(here, Printed)
    assert isinstance(there, Printed)
    assert here.scores.text_perplexity == there.scores.text_perplexity
    assert here.scores.asr_wer == pytest.approx(there.scores.asr_wer, abs=0.03)


def test_quantisation_keeps_what_a_scale_gives_it():
    row = next(line.cell.row for line in lines("9", ROW) if line.setting == "full, smoothquant+clip5")
    assert row == QuantizationRow(epochs=3, calibration_sequences=64, weight_clip_percent=5, method="smoothquant")


def test_ranks_are_the_papers():
    ranks = {line.cell.adaptation for line in lines("5", ROW)}
    assert ranks == {Adaptation(), *(Adaptation("lora", rank) for rank in (512, 256, 128))}


def test_max_shift_before_the_ordinary_softmax_is_the_ordinary_softmax():
    assert cells("7") == {Cell("none")}
    assert [line.cell.sink for line in lines("4", ROW)] == ["zero", "l1", "max", "mean"]


def test_an_unknown_table():
    with pytest.raises(UserError, match="table 12: the paper has none"):
        lines("12", ROW)
