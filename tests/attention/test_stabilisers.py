"""The naive formulas of Tables 4 and 7: right where they hold, and failing where and why it can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sparq.attention import probabilities
from sparq.attention.stabilisers import DTYPES, MASKS, STABILISERS, Case, Outcome, outcome, survey

FINE = Outcome("fine", "")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return survey()


def of(name: str, scores: list[float], dtype: torch.dtype = torch.float32, mask: str = "nothing") -> Outcome:
    return outcome(STABILISERS[name], torch.tensor(scores, dtype=dtype), mask)


@pytest.mark.parametrize("name", STABILISERS)
def test_formulas_are_the_definitions_where_nothing_overflows(name: str) -> None:
    scores = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    naive = STABILISERS[name].formula(scores, lambda _, value, **__: value)
    exact = probabilities(scores[None, None], STABILISERS[name].sink)[0, 0]
    torch.testing.assert_close(naive, exact, rtol=1e-12, atol=1e-14)


def test_exponentials_overflow_where_they_must() -> None:
    # The largest exponents are ln 65504 = 11.09 in float16, and 88.7 in bfloat16 and float32.
    for dtype, below, above in ((torch.float16, 11.0, 11.2), (torch.bfloat16, 88.0, 89.5), (torch.float32, 88.0, 88.8)):
        for name in ("softmax_1", "softmax"):
            assert of(name, [0.0, -1.0, below], dtype) == FINE
            assert of(name, [0.0, -1.0, above], dtype) == Outcome("output", "exp = inf")
    # The ordinary softmax fails below as well, where softmax_1 rightly gives nothing.
    assert of("softmax", [-120.0, -110.0]) == Outcome("output", "Σ exp = 0")
    assert of("softmax_1", [-120.0, -110.0]) == FINE


def test_outeffhop_loses_its_gradient_where_all_scores_are_low() -> None:
    assert of("softmax_1 as in OutEffHop", [200.0, -200.0]) == FINE
    assert of("softmax_1 as in OutEffHop", [-80.0, -81.0]) == FINE
    assert of("softmax_1 as in OutEffHop", [-95.0, -96.0]) == Outcome("gradient", "exp(−max S) = inf")


def test_norms_and_means_that_do_not_leave_out_hidden_positions() -> None:
    small = [0.5, 9.0, -0.5, 9.0, 0.25]  # the second and fourth are hidden
    assert of("L1, softmax_1", small, mask="-inf") == Outcome("output", "‖S‖₁ = inf")
    assert of("L1, softmax_1", small, mask="finfo.min") == Outcome("wrong", "‖S‖₁ = inf")
    assert of("mean-centring, softmax_1", small, mask="-inf") == Outcome("output", "mean S = -inf")
    assert of("mean-centring, softmax_1", small, mask="finfo.min").kind == "output"
    assert of("L1, softmax_1", small) == of("mean-centring, softmax_1", small) == FINE
    assert of("L1, softmax_1", [0.0, 0.0]) == Outcome("output", "‖S‖₁ = 0")


def test_max_shift_fails_only_where_the_scores_are_infinite_already(cases: list[Case]) -> None:
    for name in ("max-shift, softmax_1", "max-shift, softmax"):
        for case in (case for case in cases if case.stabiliser == name):
            infinite = case.dtype == torch.float16 and case.magnitude > 65504
            assert (case.outcome.kind == "fine") != infinite, case
            assert not infinite or case.outcome.cause.startswith("S = ")


def test_mean_centring_diverges_whatever_the_scores_once_a_position_is_hidden(cases: list[Case]) -> None:
    masked = [case for case in cases if case.stabiliser == "mean-centring, softmax_1" and case.mask != "nothing"]
    assert {case.outcome.kind for case in masked} == {"output"}
    assert {case.dtype for case in masked} == set(DTYPES)


def test_l1_never_overflows_an_exponential(cases: list[Case]) -> None:
    of_l1 = [case for case in cases if case.stabiliser == "L1, softmax_1"]
    assert not any(case.outcome.cause.startswith("exp") for case in of_l1)
    wide = [case for case in of_l1 if case.dtype != torch.float16 and case.mask == "nothing" and case.magnitude > 0]
    assert all(case.outcome == FINE for case in wide)
    assert {case.outcome.kind for case in of_l1 if case.mask == "-inf"} == {"output"}


def test_every_failure_has_a_cause_and_every_mask_is_tried(cases: list[Case]) -> None:
    assert all(bool(case.outcome.cause) == (case.outcome.kind != "fine") for case in cases)
    assert {case.mask for case in cases} == set(MASKS)
    assert {math.isinf(case.magnitude) for case in cases} == {False}
