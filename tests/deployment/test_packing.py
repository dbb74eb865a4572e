"""Weights in low bits: their codes, their bytes, and the grids of simulated quantisation read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.deployment.packing import Packed, block_size, pack, stacked
from sparq.errors import UserError
from sparq.quantization.quantizer import Quantizer


def weight(rows=6, columns=96, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [96, 48])
def test_a_weight_is_rounded_as_the_quantiser_rounds_it(bits, columns):
    w = weight(columns=columns)
    packed = pack(w, bits, "w")
    assert packed.block == (32 if columns == 96 else 16)
    simulated = Quantizer(bits, "group", symmetric=False, group_size=packed.block)(w)
    torch.testing.assert_close(torch.from_numpy(packed.unpacked()), simulated, atol=1e-6, rtol=0)


def test_the_first_code_of_a_byte_is_in_its_low_bits():
    codes = np.arange(32, dtype=np.uint8)[None] % 16
    packed = Packed(4, 32, codes, np.ones((1, 1), np.float32), np.full((1, 1), 7, np.uint8))
    assert packed.code_bytes.shape == (1, 1, 16)
    assert packed.code_bytes[0, 0, :3].tolist() == [0x10, 0x32, 0x54]
    assert packed.zero_point_bytes.tolist() == [[7]]
    assert packed.unpacked()[0, :3].tolist() == [-7, -6, -5]


@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_are_what_the_width_says(bits):
    packed = pack(weight(6, 96), bits, "w")
    assert packed.code_bytes.nbytes == 6 * 96 * bits // 8
    assert packed.zero_point_bytes.nbytes == 6 * (2 if bits == 4 else 3)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from([3, 4, 8]),
    st.sampled_from(["channel", 32, 64]),
    st.booleans(),
    st.floats(1e-3, 1e3),
)
def test_a_simulated_grid_is_taken_over_exactly(seed, bits, granularity, symmetric, scale):
    kind, size = ("channel", None) if granularity == "channel" else ("group", granularity)
    quantizer = Quantizer(bits, kind, symmetric, size)
    simulated = quantizer(weight(5, 128, seed) * scale)
    packed = pack(simulated, 4 if bits < 8 else 8, "w", quantizer)
    torch.testing.assert_close(torch.from_numpy(packed.unpacked()), simulated, rtol=1e-5, atol=1e-6 * scale)


def test_a_grid_whose_ends_are_not_in_use_is_found():
    """As GPTQ may leave it: it moves weights away from where the grid was made."""
    quantizer = Quantizer(4, "group", group_size=32)
    simulated = quantizer(weight(5, 64))
    steps = quantizer.range_parameters(quantizer.grouped(simulated))[0]
    moved = (quantizer.grouped(simulated) / steps).round().clamp(-6, 5) * steps
    packed = pack(moved.reshape(5, 64), 4, "w", quantizer)
    torch.testing.assert_close(torch.from_numpy(packed.unpacked()), moved.reshape(5, 64), rtol=1e-5, atol=1e-6)


def test_a_wider_grid_is_rounded_anew():
    quantizer = Quantizer(8, "channel")
    simulated = quantizer(weight())
    anew = pack(simulated, 4, "w", quantizer)
    np.testing.assert_array_equal(anew.unpacked(), pack(simulated, 4, "w").unpacked())


def test_zeros_and_single_values_survive():
    w = torch.zeros(3, 32)
    w[1, 4], w[2] = 0.7, -0.3
    for bits in (4, 8):
        torch.testing.assert_close(torch.from_numpy(pack(w, bits, "w").unpacked()), w)


def test_stacked_weights_are_the_parts():
    parts = [pack(weight(2, 64, seed), 4, "w") for seed in range(3)]
    np.testing.assert_array_equal(stacked(parts).unpacked(), np.concatenate([part.unpacked() for part in parts]))


def test_what_cannot_be_packed_is_named():
    with pytest.raises(UserError, match="fc1: has 40 inputs"):
        block_size(40, "fc1")
    with pytest.raises(UserError, match="fc1: holds a value that is not finite"):
        pack(torch.full((2, 32), torch.nan), 4, "fc1")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "dtype"), [(4, torch.bfloat16), (4, torch.float16), (8, torch.float16)])
def test_a_simulated_grid_is_found_in_half_precision(bits, dtype, symmetric):
    quantizer = Quantizer(bits, "group", symmetric, 32)
    simulated = quantizer(weight(40, 128))
    steps, _ = quantizer.range_parameters(quantizer.grouped(simulated))
    packed = pack(simulated.to(dtype), bits, "w", quantizer)
    found = quantizer.grouped(torch.from_numpy(packed.unpacked())) / steps
    assert (found - found.round()).abs().max() < 0.15, "as far as the step itself is off"
    wanted = (quantizer.grouped(simulated) / steps).round()
    assert torch.equal(found.round(), wanted)
