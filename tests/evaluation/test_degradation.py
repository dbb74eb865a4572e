from __future__ import annotations

import pytest

from sparq.errors import UserError
from sparq.evaluation.degradation import Scores, average_drop

OPT_125M = Scores(22.56, 59.42, 12.4, 12.08)
OPT_350M = Scores(13.13, 43.1, 8.42, 17.56)
OPT_125M_SPARQ = Scores(22.7, 59.45, 12.61, 12.11)
OPT_1B_SPARQ = Scores(12.95, 42.48, 8.25, 12.07)

FOLLOW = [  # printed in Tables 6 and 9, and following from their rows
    (OPT_125M, Scores(45.23, 96.87, 52.31, 48.79), 197.31),
    (OPT_125M, Scores(31.28, 80.21, 31.98, 29.55), 94.04),
    (OPT_350M, Scores(13.17, 43.14, 8.47, 17.71), 0.46),
    (OPT_350M, Scores(21.33, 52.53, 13.71, 26.26), 49.18),
    (OPT_1B_SPARQ, Scores(20.81, 48.84, 22.78, 25.46), 90.68),
]
DO_NOT_FOLLOW = [  # printed in Tables 6, 2 and 9, beside what their rows give
    (OPT_125M_SPARQ, Scores(37.14, 84.55, 35.32, 36.73), 112.05, 122.31),
    (OPT_350M, Scores(17.87, 51.65, 93.91, 97.06), 233.98, 381.00),  # Table 8 prints 381.00 for the same row
    (OPT_350M, Scores(36.22, 78.33, 40.46, 75.88), 267.56, 242.56),
]


@pytest.mark.parametrize(("full", "quantised", "printed"), FOLLOW)
def test_is_the_papers(full, quantised, printed):
    assert average_drop(full, quantised) == pytest.approx(printed, abs=0.006)


@pytest.mark.parametrize(("full", "quantised", "printed", "computed"), DO_NOT_FOLLOW)
def test_some_printed_drops_do_not_follow(full, quantised, printed, computed):
    assert average_drop(full, quantised) == pytest.approx(computed, abs=0.006)
    assert abs(average_drop(full, quantised) - printed) > 1


def test_nothing_lost_and_something_won():
    assert average_drop(OPT_125M, OPT_125M) == 0
    assert average_drop(Scores(10, 10, 10, 10), Scores(5, 10, 10, 10)) == pytest.approx(-12.5)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_nothing_is_relative_to_zero(value):
    with pytest.raises(UserError, match="asr_wer is"):
        average_drop(Scores(10, 10, value, 10), OPT_125M)
