"""NF4: its levels against their definition, its grid against a plain one."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.quantization import Quantizer
from sparq.quantization.normal_float import BLOCK, LEVELS, fake_normal_float


def test_levels_are_quantiles_of_the_normal_distribution():
    """QLoRA, appendix E: 8 quantiles for the positive side, 7 for the negative one, zero, divided by the largest."""
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    inverse = NormalDist().inv_cdf

    def side(count):
        return [inverse(outermost + index * (0.5 - outermost) / count) for index in range(count)]

    expected = sorted([-x for x in side(7)] + [0.0] + side(8))
    assert len(LEVELS) == 16
    # They were published as computed in single precision, with the outermost quantile cut to seven digits.
    assert pytest.approx([x / max(expected) for x in expected], abs=5e-7) == list(LEVELS)


def plain(values):
    """One block at a time, one value at a time."""
    found = []
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        scale = max(map(abs, block)) or 1.0
        found += [min(LEVELS, key=lambda level, x=x, s=scale: abs(level - x / s)) * scale for x in block]
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 1000))
def test_grid_is_the_plain_one_and_stays_where_it_is(rows, columns, seed):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[0, : seed % 3] = 0
    on_grid = fake_normal_float(x)
    assert on_grid.shape == x.shape
    torch.testing.assert_close(on_grid.flatten(), torch.tensor(plain(x.flatten().tolist())))
    assert torch.equal(fake_normal_float(on_grid), on_grid)
    # At most half the widest gap between levels, which is the one below −0.69.
    assert (on_grid - x).abs().max() <= x.abs().max() * (LEVELS[1] - LEVELS[0]) / 2 + 1e-6


def test_nothing_but_zeros_stays_so():
    assert torch.equal(fake_normal_float(torch.zeros(3, 50)), torch.zeros(3, 50))


def test_normal_weights_lose_less_than_on_a_uniform_grid_of_one_scale():
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    uniform = Quantizer(4, "group", group_size=BLOCK)(x)
    assert (fake_normal_float(x) - x).norm() < (uniform - x).norm()
