from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, Quantizer, quantize
from sparq.quantization.blocks import blocks
from sparq.quantization.clipping import TailClipping


def test_the_tail_by_hand():
    weight = torch.arange(1.0, 101.0)[None] * torch.tensor([[1.0], [-2.0]])
    for percent, end in ((0, 100), (1, 99), (5, 95), (5.9, 95), (99.5, 1)):
        low, high = TailClipping(percent)(weight)
        assert torch.equal(high, torch.tensor([[end], [2.0 * end]]))
        assert torch.equal(low, -high)
    clipped = Quantizer(8, "channel")(weight, TailClipping(5))
    assert torch.equal(clipped[0, 94:], torch.full((6,), 95.0))
    assert torch.equal(clipped[1, 94:], torch.full((6,), -190.0))
    torch.testing.assert_close(clipped[0, 0], torch.tensor(95 / 127))  # a finer step than 100 / 127


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.floats(0, 99), st.integers(0, 2**31))
def test_the_range_is_the_smallest_that_leaves_no_more_out(width, percent, seed):
    weight = torch.randn(3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    _, high = TailClipping(percent)(weight)
    for row, end in zip(weight.abs().tolist(), high.flatten().tolist(), strict=True):
        assert end in row
        allowed = math.floor(width * percent / 100)
        assert sum(x > end for x in row) == allowed  # one value less in the range, and one too many were out


def test_a_row_of_almost_only_zeros_keeps_its_range():
    weight = torch.zeros(2, 100)
    weight[0, 7] = 3.0
    assert torch.equal(TailClipping(5)(weight)[1], torch.tensor([[3.0], [0.0]]))
    assert torch.equal(Quantizer(4, "channel")(weight, TailClipping(5)), weight)


@pytest.mark.parametrize("method", ["smoothquant", "round"])
def test_the_tail_of_a_models_weights_is_cut(kind, method, make_tiny, make_batches):
    model, plain = make_tiny(kind), make_tiny(kind)
    config = QuantizationConfig(method, 4, 16, calibration_sequences=4, weight_clip_percent=20)
    quantize(model, config, make_batches())
    # With the weights in full precision, what would have been rounded is there.
    quantize(plain, QuantizationConfig(method, 16, 16, calibration_sequences=4), make_batches())
    for block in blocks(make_tiny(kind)):
        for name in block.linears:
            full, cut = plain.get_submodule(name).matrix, model.get_submodule(name).matrix
            sorted_ = full.abs().sort(-1).values
            end = sorted_[:, full.shape[1] - 1 - full.shape[1] // 5]
            torch.testing.assert_close(cut.abs().amax(-1), end)


def test_clipping_goes_by_group(make_tiny):
    model, plain = make_tiny("opt-pre-norm"), make_tiny("opt-pre-norm")
    quantize(model, QuantizationConfig("round", 4, 16, weight_clip_percent=20, group_size=8))
    weight = plain.model.decoder.layers[0].fc2.weight.reshape(-1, 8).abs()
    given_ = model.model.decoder.layers[0].fc2.weight.reshape(-1, 8).abs()
    torch.testing.assert_close(given_.amax(-1), weight.sort(-1).values[:, 6])


def test_clipping_a_little_helps_against_weights_that_stand_out(make_tiny, make_batches):
    model = make_tiny("opt-pre-norm")
    batch = make_batches(1, seed=5)[0]
    with torch.no_grad():
        for siblings in (siblings for block in blocks(model) for siblings in block.smoothed):
            for name in siblings.linears:
                model.get_submodule(name).weight[::2, 3] = 3.0  # a value that stretches the grid of its row
            for parameter in siblings.norm.parameters():
                parameter[3] = 0.0  # and meets nothing
        wanted = model(**batch).logits
        error = []
        for percent in (0, 7):
            given_ = quantize(copy.deepcopy(model), QuantizationConfig("round", 4, 16, weight_clip_percent=percent))
            error.append(float((given_(**batch).logits - wanted).square().mean()))
    assert error[1] < error[0]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"weight_clip_percent": 100}, r"quantization\.weight_clip_percent: 100 is not a number"),
        ({"weight_clip_percent": -1}, r"quantization\.weight_clip_percent: -1"),
        ({"weight_clip_percent": True}, r"quantization\.weight_clip_percent: True"),
        ({"method": "omniquant", "weight_clip_percent": 1}, r"weight_clip_percent: 1 is not 0, because omniquant"),
        ({"weight_bits": 16, "weight_clip_percent": 1}, r"weight_clip_percent: 1 is not 0, and there is no grid"),
        ({"group_size": -1}, r"quantization\.group_size: -1"),
        ({"group_size": 1.5}, r"quantization\.group_size: 1\.5"),
        ({"epochs": 0}, r"quantization\.epochs: 0"),
        ({"batch_sequences": 0}, r"quantization\.batch_sequences: 0"),
        ({"stability_factor": 0}, r"quantization\.stability_factor: 0"),
        ({"transformation_rate": float("nan")}, r"quantization\.transformation_rate: nan"),
        ({"clipping_rate": 2}, r"quantization\.clipping_rate: 2"),
    ],
)
def test_bad_settings(settings_, message):
    with pytest.raises(UserError, match=message):
        QuantizationConfig(**settings_)
