"""The plain definitions: identities, bounds, hidden positions and extreme rows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.attention import SINKS, attention, probabilities
from sparq.attention.softmax import additive_mask


def scores(*shape: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * spread


LEARNED = torch.tensor([0.7, -1.3, 2.0], dtype=torch.float64)


def test_golden_row() -> None:
    row = torch.tensor([[[[math.log(1), math.log(2), math.log(5)]]]], dtype=torch.float64)
    weights = torch.tensor([1.0, 2, 5], dtype=torch.float64)
    mean = 10 ** (1 / 3)
    total = math.log(2) + math.log(5)
    l1 = torch.tensor([1, 2 ** (1 / total), 5 ** (1 / total)], dtype=torch.float64)
    expected = {
        "none": weights / 8,
        "zero": weights / 9,
        "max": weights / 13,
        "mean": weights / (8 + mean),
        "learned": weights / (8 + math.exp(0.5)),
        "l1": l1 / (l1.sum() + 1),
        "clipped": torch.tensor([0, 0.25, 1], dtype=torch.float64),  # 3·weights/8 − 0.5, cut off at 0 and 1
    }
    for sink in SINKS:
        given_logit = torch.tensor([0.5], dtype=torch.float64)
        stretch = {"gamma": -0.5, "zeta": 2.5} if sink == "clipped" else {}
        given_row = probabilities(row, sink, given_logit, **stretch)[0, 0, 0]
        torch.testing.assert_close(given_row, expected[sink], rtol=1e-14, atol=1e-16)


def test_max_sink_is_vanilla_over_one_plus_its_peak_and_equation_3_2_literally() -> None:
    s = scores(2, 3, 5, 7)
    vanilla = torch.softmax(s, -1)
    p = probabilities(s, "max")
    torch.testing.assert_close(p, vanilla / (1 + vanilla.amax(-1, keepdim=True)), rtol=1e-13, atol=1e-15)
    centred = torch.exp(s - s.amax(-1, keepdim=True))
    torch.testing.assert_close(p, centred / (1 + centred.sum(-1, keepdim=True)), rtol=1e-13, atol=1e-15)


def test_mean_sink_is_softmax_one_of_centred_scores() -> None:
    s = scores(2, 3, 5, 7)
    centred = s - s.mean(-1, keepdim=True)
    torch.testing.assert_close(probabilities(s, "mean"), probabilities(centred, "zero"), rtol=1e-13, atol=1e-15)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 40), spread=st.floats(0.01, 60), seed=st.integers(0, 99))
def test_attention_mass_bounds(n: int, spread: float, seed: int) -> None:
    s = scores(1, 3, 4, n, seed=seed, spread=spread)
    mass = {sink: probabilities(s, sink, LEARNED).sum(-1) for sink in SINKS}
    slack = 1e-12
    assert (mass["none"] - 1).abs().max() < slack
    assert mass["max"].min() >= 0.5 - slack
    assert mass["max"].max() <= n / (n + 1) + slack
    assert mass["mean"].min() >= n / (n + 1) - slack
    for sink in ("zero", "learned", "l1"):
        assert mass[sink].min() >= 0
        assert mass[sink].max() <= 1 + slack
    assert all((probabilities(s, sink, LEARNED) >= 0).all() for sink in SINKS)


def test_zero_sink_can_silence_a_row_and_max_sink_cannot() -> None:
    s = torch.full((1, 1, 1, 5), -50.0, dtype=torch.float64)
    assert probabilities(s, "zero").sum() < 1e-20
    assert probabilities(s, "max").sum() == pytest.approx(5 / 6)


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("fill", [-math.inf, torch.finfo(torch.float32).min, -1e9])
def test_hidden_positions_count_nowhere(sink: str, fill: float) -> None:
    q, k, v = (scores(1, 3, 6, 4, seed=i, spread=1) for i in range(3))
    seen = torch.tensor([True, False, True, True, False, True]).expand(1, 1, 6, 6)
    masked, weights = attention(q, k, v, sink, mask=seen, learned=LEARNED)
    keep = seen[0, 0, 0]
    short, _ = attention(q, k[:, :, keep], v[:, :, keep], sink, learned=LEARNED)
    torch.testing.assert_close(masked, short, rtol=1e-12, atol=1e-13)
    assert (weights[..., ~keep] == 0).all()
    numbers = torch.zeros(1, 1, 6, 6).masked_fill(~seen, fill)
    torch.testing.assert_close(attention(q, k, v, sink, mask=numbers, learned=LEARNED)[0], masked, rtol=0, atol=0)


@pytest.mark.parametrize("sink", SINKS)
def test_row_that_sees_nothing_attends_to_nothing(sink: str) -> None:
    q, k, v = (scores(1, 3, 4, 4, seed=i).requires_grad_() for i in range(3))
    seen = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    seen[0, 0, 1] = False
    output, weights = attention(q, k, v, sink, mask=seen, learned=LEARNED)
    assert (output[:, :, 1] == 0).all()
    assert (weights[:, :, 1] == 0).all()
    for gradient in torch.autograd.grad(output.sum(), (q, k, v)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("peak", [-100.0, 100.0])
def test_finite_at_extreme_rows(sink: str, dtype: torch.dtype, peak: float) -> None:
    q = torch.full((1, 3, 5, 4), peak / 4, dtype=dtype, requires_grad=True)
    k, v = (torch.ones(1, 3, 5, 4, dtype=dtype, requires_grad=True) for _ in range(2))
    learned = LEARNED.to(dtype).requires_grad_()
    output, _ = attention(q, k, v, sink, causal=True, scale=1.0, learned=learned)
    output.float().sum().backward()
    leaves = [q, k, v] + [learned] * (sink == "learned")
    assert all(torch.isfinite(x).all() for x in (output, *(leaf.grad for leaf in leaves)))


@pytest.mark.parametrize("sink", SINKS)
def test_probabilities_gradcheck(sink: str) -> None:
    learned = LEARNED.clone().requires_grad_()
    s = scores(1, 3, 2, 5, spread=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, sigma: probabilities(s, sink, sigma), (s, learned))


@pytest.mark.parametrize("sink", ["max", "mean"])
def test_detach_keeps_values_and_changes_gradients(sink: str) -> None:
    s = scores(1, 3, 4, 5).requires_grad_()
    true, constant = probabilities(s, sink), probabilities(s, sink, detach=True)
    assert torch.equal(true, constant)
    side = scores(1, 3, 4, 5, seed=1)
    gradients = [torch.autograd.grad((p * side).sum(), s)[0] for p in (true, constant)]
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3
    # A constant shift of a row changes nothing where σ moves along with it.
    assert gradients[0].sum(-1).abs().max() < 1e-12


def test_causal_needs_as_many_queries_as_keys() -> None:
    with pytest.raises(ValueError, match="3 and 4"):
        additive_mask(None, torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 4, 2), causal=True)


def test_dropout_drops_and_keeps_the_expected_sum() -> None:
    torch.manual_seed(0)
    q, k, v = (scores(1, 2, 200, 4, seed=i, spread=0.1) for i in range(3))
    _, kept = attention(q, k, v, "zero", dropout=0.25)
    assert (kept == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    _, whole = attention(q, k, v, "zero")
    assert kept.sum().item() == pytest.approx(whole.sum().item(), rel=0.01)
