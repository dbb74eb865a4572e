from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.errors import UserError
from sparq.quantization.quantizer import Quantizer, fake_quantize, round_straight_through

few = settings(max_examples=25, deadline=None)
quantizers = st.builds(
    lambda bits, shape, symmetric: Quantizer(bits, shape, symmetric, 4 if shape == "group" else None),
    st.integers(2, 8),
    st.sampled_from(["tensor", "channel", "token", "group"]),
    st.booleans(),
)
seeds = st.integers(0, 2**31)


def values(seed, *shape):
    # Heavy tails, different scales per row, a row without positive values and one of zeros.
    generator = np.random.default_rng(seed)
    x = generator.standard_t(3, shape) * np.exp(generator.normal(size=(shape[0], *[1] * (len(shape) - 1))))
    x[0] = -np.abs(x[0])
    x[-1] = 0
    return torch.from_numpy(x)


@few
@given(quantizers, seeds)
def test_a_second_pass_changes_nothing(quantizer, seed):
    once = quantizer(values(seed, 5, 3, 8))
    torch.testing.assert_close(quantizer(once), once, rtol=1e-12, atol=1e-12)


@few
@given(quantizers, seeds)
def test_error_is_at_most_half_a_step(quantizer, seed):
    x = values(seed, 5, 3, 8)
    scale, _ = quantizer.range_parameters(x if quantizer.group_size is None else x.unflatten(-1, (-1, 4)))
    error = (quantizer(x) - x).abs().reshape(*x.shape[:-1], -1, 4) if quantizer.group_size else (quantizer(x) - x).abs()
    assert bool((error <= scale / 2 * (1 + 1e-9)).all())


@few
@given(quantizers, seeds)
def test_zero_stays_exactly_zero_and_the_grid_has_few_enough_levels(quantizer, seed):
    x = values(seed, 5, 3, 8)
    x[:, :, ::3] = 0
    y = quantizer(x)
    assert bool((y[:, :, ::3] == 0).all())
    assert bool((y[-1] == 0).all())
    largest_set = {"tensor": y.flatten()[None], "channel": y.flatten(1), "token": y.flatten(0, 1)}.get(
        quantizer.granularity, y.reshape(-1, 4)
    )
    assert max(len(row.unique()) for row in largest_set) <= 2**quantizer.bits


@few
@given(st.sampled_from(["tensor", "channel", "token"]), st.booleans(), seeds)
def test_more_bits_mean_less_error(granularity, symmetric, seed):
    x = values(seed, 9, 256)
    errors = [float((Quantizer(bits, granularity, symmetric)(x) - x).square().mean()) for bits in range(2, 9)]
    # Where one value is far above all others, these are nothing with 2 bits and with 3: one more bit may change nothing.
    assert all(wide <= narrow * (1 + 1e-12) for narrow, wide in itertools.pairwise(errors))
    assert all(wide < narrow for narrow, wide in zip(errors, errors[2:], strict=False))


@few
@given(st.integers(2, 8), st.booleans(), seeds)
def test_groups_are_separate_tensors(bits, symmetric, seed):
    x = values(seed, 4, 12)
    whole = Quantizer(bits, "tensor", symmetric)
    by_hand = torch.cat([torch.stack([whole(part) for part in row.split(3)]).reshape(1, -1) for row in x])
    torch.testing.assert_close(Quantizer(bits, "group", symmetric, 3)(x), by_hand, rtol=0, atol=0)


@few
@given(st.integers(2, 8), st.sampled_from(["channel", "token"]), st.booleans(), seeds)
def test_agrees_with_torch(bits, granularity, symmetric, seed):
    x = values(seed, 6, 6).float()
    quantizer = Quantizer(bits, granularity, symmetric)
    scale, zero_point = quantizer.range_parameters(x)
    zero_point = torch.as_tensor(zero_point).expand_as(scale)
    low, high = quantizer.levels
    torchs = torch.fake_quantize_per_channel_affine(x, scale.flatten(), zero_point.flatten().int(), 0, low, high)
    # torch multiplies by 1 / scale, so a value in the middle of two levels may go to the other one.
    middle = ((x / scale) % 1 - 0.5).abs() < 1e-4
    torch.testing.assert_close(quantizer(x)[~middle], torchs[~middle], rtol=1e-6, atol=1e-6)
    assert middle.float().mean() < 0.2


def test_agrees_with_torchs_observer():
    x = values(3, 8, 32).float()
    observer = torch.ao.quantization.PerChannelMinMaxObserver(
        0, torch.qint8, torch.per_channel_symmetric, quant_min=-7, quant_max=7
    )
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    ours, _ = Quantizer(4, "channel").range_parameters(x)
    # torch takes the 15 levels over twice the range: the same step; its floor on zero rows is not ours.
    torch.testing.assert_close(ours.flatten()[:-1], scale[:-1], rtol=1e-6, atol=0)
    assert bool((zero_point == 0).all())


def test_known_values():
    x = torch.tensor([[-7.0, 3.4, 3.6, 0.2]])
    assert Quantizer(4, "token")(x).tolist() == [[-7, 3, 4, 0]]
    assert Quantizer(2, "token", symmetric=False)(torch.tensor([[-1.0, 0.4, 2.0, 0.6]])).tolist() == [[-1, 0, 2, 1]]


def test_the_gradient_goes_straight_through():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    round_straight_through(x).sum().backward()
    assert x.grad.tolist() == [1.0] * 13
    assert round_straight_through(x).tolist() == x.round().tolist()


def test_the_gradient_of_the_step_is_the_rounding_error():
    # d(q·s)/ds with q = round(x/s) straight through: q − x/s inside the grid, the bound outside it.
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.6, -0.9, 9.0], dtype=torch.float64, requires_grad=True)
    fake_quantize(x, scale, 0, -7, 7).sum().backward()
    assert float(scale.grad) == pytest.approx((1 - 1.2) + (-2 + 1.8) + 7)
    assert x.grad.tolist() == [1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x = values(0, 6, 64).to(dtype)
    y = Quantizer(8, "token")(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, Quantizer(8, "token")(x.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "token"), "bits: 1"),
        ((4, "row"), "granularity: 'row'"),
        ((4, "group"), "group_size: None"),
        ((4, "token", True, 4), "group_size: 4"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message):
        Quantizer(*arguments)


def test_group_size_must_divide():
    with pytest.raises(UserError, match="group_size: 5 does not divide the dimension of 8"):
        Quantizer(4, "group", group_size=5)(torch.ones(2, 8))
