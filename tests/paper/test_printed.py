from __future__ import annotations

import csv

import pytest

from sparq.errors import UserError
from sparq.evaluation.degradation import Scores
from sparq.paper.printed import FOLDER, TITLES, Printed, Setting, improvements, other_table, scores_table

SETTING = Setting("OPT-125m", "vanilla", "full", "smoothquant", "W4A4")


def named(row):
    return (row.setting.model, row.setting.attention, row.setting.adaptation, row.setting.quantisation)


def test_every_number_is_in_a_table():
    with_scores = [name for name in TITLES if not other_table(name)]
    assert with_scores == ["1", "2", "6", "8", "9", "10", "G.1"]
    with (FOLDER / "scores.csv").open(encoding="utf-8") as file:
        lines = sum(len(row["table"].split(",")) for row in csv.DictReader(file))
    assert sum(len(scores_table(name)) for name in with_scores) == lines
    assert len(scores_table("1")) == 24
    assert len(scores_table("6")) == 42
    with pytest.raises(UserError, match="table 3: has no scores"):
        scores_table("3")
    with pytest.raises(UserError, match="table 12: the paper has none"):
        other_table("12")


def test_a_drop_worked_out_by_hand():
    row = next(r for r in scores_table("1") if r.setting == SETTING)
    assert row.baseline == Scores(22.56, 59.42, 12.40, 12.08)
    by_hand = 100 * (45.23 / 22.56 + 96.87 / 59.42 + 52.31 / 12.40 + 48.79 / 12.08 - 4) / 4
    assert row.recomputed == pytest.approx(by_hand)
    assert (row.drop, row.follows) == (197.31, True)


@pytest.mark.parametrize(
    ("drop", "follows"), [(100.0, True), (100.15, True), (100.16, False), (99.85, True), (99.84, False)]
)
def test_a_drop_follows_up_to_the_rounding_of_all_that_it_is_made_of(drop, follows):
    """Scores of 10.00 and 20.00: from 19.995 / 10.005 − 1, 99.850 %, to 20.005 / 9.995 − 1, 100.150 %."""
    row = Printed(SETTING, Scores(*[20.0] * 4), drop, Scores(*[10.0] * 4))
    assert row.follows is follows


def test_the_drops_that_do_not_follow():
    wrong = {
        name: [row for row in scores_table(name) if row.follows is False] for name in ("1", "2", "6", "8", "9", "10")
    }
    assert {name: len(rows) for name, rows in wrong.items()} == {"1": 3, "2": 6, "6": 3, "8": 0, "9": 2, "10": 0}
    assert all(row.setting.model == "OPT-125m" and row.setting.attention == "sparq" for row in wrong["1"])
    lora = next(row for row in wrong["2"] if named(row) == ("OPT-350m", "vanilla", "lora", "none"))
    assert lora.drop == 233.98
    assert lora.recomputed == pytest.approx(381.0, abs=0.05)  # what Table 8 prints for the same scores


def test_where_nothing_can_be_recomputed():
    rows = [row for row in scores_table("G.1") if row.setting.attention in {"clipped_softmax", "gated_attention"}]
    assert len(rows) == 4
    assert all(row.drop is not None and row.recomputed is None and row.follows is None for row in rows)
    assert all(row.follows for row in scores_table("G.1") if row not in rows)


def test_the_improvement_that_the_abstract_claims():
    found = {(i.setting.model, i.setting.quantisation): i for i in improvements(scores_table("1"))}
    assert len(found) == 9
    claimed = found["OPT-1.3b", "affinequant"]
    assert round(claimed.of_drops) == 45
    by_hand = 100 - 100 * (20.81 / 24.31 + 48.84 / 61.74 + 22.78 / 43.68 + 25.46 / 32.47) / 4
    assert claimed.of_scores == pytest.approx(by_hand)
    qlora = next(
        i
        for i in improvements(scores_table("2"))
        if i.setting == Setting("OPT-1.3b", "sparq", "qlora-int8", "none", "W16A16")
    )
    assert qlora.of_drops > 0 > qlora.of_scores  # a smaller drop, and yet the worse model
