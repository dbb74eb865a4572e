from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.attention import install
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, Quantizer, quantize
from sparq.quantization.blocks import blocks
from sparq.quantization.clipping import TailClipping
from sparq.quantization.gptq import DAMPENING, gptq
from sparq.quantization.simulate import SimulatedLinear

FOUR = Quantizer(4, "channel")


def drawn(seed, rows, columns, *, correlation, tokens=64):
    """A weight, and XᵀX of inputs that have something in common."""
    generator = torch.Generator().manual_seed(seed)
    weight, x, common = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((rows, columns), (tokens, columns), (tokens, 3))
    )
    mixed = common @ torch.randn(3, columns, dtype=torch.float64, generator=generator)
    x = (1 - correlation) * x + correlation * mixed
    return weight, x.T @ x


def error(weight, rounded, products):
    return float(torch.trace((weight - rounded) @ products @ (weight - rounded).T))


def steps_of(weight, quantizer, clipping=None):
    """The step of the grid at every value of a weight, written out."""
    size, percent = quantizer.group_size or weight.shape[1], clipping.percent if clipping else 0
    steps = torch.empty_like(weight)
    for i, row in enumerate(weight):
        for at in range(0, len(row), size):
            magnitudes = sorted(row[at : at + size].abs().tolist())
            steps[i, at : at + size] = magnitudes[size - 1 - int(size * percent / 100)] / quantizer.levels[1]
    return steps


def plain_gptq(weight, products, quantizer, clipping=None):
    """Optimal brain quantisation in the order of the columns, every inverse taken anew; no Cholesky factor, no blocks."""
    low, high = quantizer.levels
    columns = weight.shape[1]
    damped = products + DAMPENING * products.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    rounded = torch.empty_like(weight)
    for i, steps in enumerate(steps_of(weight, quantizer, clipping)):
        row = weight[i].clone()
        for j, step in enumerate(steps):
            q = (row[j] / step).round().clamp(low, high) * step
            inverse = torch.linalg.inv(damped[j:, j:])
            row[j:] -= (row[j] - q) / inverse[0, 0] * inverse[:, 0]
            rounded[i, j] = q
        nearest = quantizer(weight[i : i + 1], clipping)
        if error(weight[i : i + 1], nearest, products) <= error(weight[i : i + 1], rounded[i : i + 1], products):
            rounded[i] = nearest[0]
    return rounded


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.integers(2, 8), st.integers(1, 24), st.sampled_from([2, 8, 64]))
def test_never_worse_than_rounding_to_nearest(seed, correlation, bits, columns, tokens):
    # With fewer tokens than columns, or perfect correlation, H has no inverse but for the damping.
    weight, products = drawn(seed, 5, columns, correlation=correlation, tokens=tokens)
    quantizer = Quantizer(bits, "channel")
    rounded, nearest = gptq(weight, products, quantizer), quantizer(weight)
    assert error(weight, rounded, products) <= error(weight, nearest, products) * (1 + 1e-9)
    scale, _ = quantizer.range_parameters(weight)
    levels = rounded / scale
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    assert float(levels.abs().max()) <= quantizer.levels[1] + 1e-9


def test_much_better_where_inputs_are_correlated():
    weight, products = drawn(0, 16, 48, correlation=0.8)
    assert error(weight, gptq(weight, products, FOUR), products) < 0.3 * error(weight, FOUR(weight), products)


@pytest.mark.parametrize(("bits", "correlation"), [(3, 0.0), (4, 0.6)])
def test_equals_the_plain_algorithm(bits, correlation):
    weight, products = drawn(1, 6, 20, correlation=correlation)
    quantizer = Quantizer(bits, "channel")
    made, wanted = gptq(weight, products, quantizer), plain_gptq(weight, products, quantizer)
    torch.testing.assert_close(made, wanted, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(made, quantizer(weight))


def test_blocks_of_columns_change_nothing():
    weight, products = drawn(2, 1, 140, correlation=0.5, tokens=300)
    torch.testing.assert_close(gptq(weight, products, FOUR), plain_gptq(weight, products, FOUR), rtol=1e-9, atol=1e-9)


def test_dead_columns_are_rounded_to_nearest():
    weight, products = drawn(3, 6, 20, correlation=0.5)
    dead = [0, 7, 19]
    products[dead], products[:, dead] = 0, 0
    made = gptq(weight, products, FOUR)
    torch.testing.assert_close(made[:, dead], FOUR(weight)[:, dead])
    assert not torch.allclose(made, FOUR(weight))
    torch.testing.assert_close(gptq(weight, torch.zeros_like(products), FOUR), FOUR(weight))


@pytest.mark.parametrize("clipping", [None, TailClipping(20)])
@pytest.mark.parametrize("quantizer", [FOUR, Quantizer(4, "group", group_size=5)])
def test_groups_and_clipping_keep_their_grids(quantizer, clipping):
    weight, products = drawn(4, 6, 20, correlation=0.7)
    weight[:, :5] *= 10
    made = gptq(weight, products, quantizer, clipping)
    torch.testing.assert_close(made, plain_gptq(weight, products, quantizer, clipping), rtol=1e-9, atol=1e-9)
    assert error(weight, made, products) < error(weight, quantizer(weight, clipping), products)
    levels = made / steps_of(weight, quantizer, clipping)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    assert float(levels.abs().max()) <= 7 + 1e-9


def by_whole_passes(model, config, batches):
    """Round by GPTQ, each linear after a pass of the whole model that shows what enters it, padding cut off."""
    found = blocks(model)
    plain = quantize(
        model, QuantizationConfig(config.method, 16, config.activation_bits, calibration_sequences=8), batches
    )
    groups = [
        names
        for block in found
        for names in (
            block.smoothed[0].linears,
            (block.attention.output,),
            block.smoothed[1].linears,
            (block.mlp_output,),
        )
    ]
    for names in groups:
        linear, seen = plain.get_submodule(names[0]), []
        handle = linear.register_forward_pre_hook(lambda module, x, seen=seen: seen.append(module.factor(x[0])))
        for batch in batches:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                with torch.no_grad():
                    plain(input_ids=ids[mask.bool()][None])
        handle.remove()
        x = torch.cat([one.flatten(0, -2) for one in seen])
        for name in names:
            matrix = plain.get_submodule(name).matrix
            with torch.no_grad():
                quantizer = config.weight_quantizer(matrix.shape[1])
                matrix.copy_(gptq(matrix, x.T @ x, quantizer, TailClipping(config.weight_clip_percent)))
    return plain


@pytest.mark.parametrize("method", ["round", "smoothquant"])
def test_blockwise_equals_whole_passes(kind, method, make_tiny, make_batches):
    config = QuantizationConfig(method, 3, 16, calibration_sequences=8, rounding="gptq")
    compare_with_whole_passes(make_tiny(kind), config, make_batches())


@pytest.mark.parametrize("attention", [{"sink": "clipped", "gamma": -0.05}, {"sink": "max", "gate": "per_token"}])
@pytest.mark.parametrize("name", ["opt-post-norm", "qwen3"])
def test_blockwise_equals_whole_passes_beside_other_attention(name, attention, make_tiny, make_batches):
    model = install(make_tiny(name), **attention)
    for part, parameter in model.named_parameters():
        if "head_gate" in part:
            torch.nn.init.normal_(parameter)
    settings = {"calibration_sequences": 8, "weight_clip_percent": 20, "group_size": 8}
    config = QuantizationConfig("smoothquant", 3, 16, rounding="gptq", **settings)
    compare_with_whole_passes(model, config, make_batches())


def compare_with_whole_passes(model, config, batches):
    wanted = by_whole_passes(copy.deepcopy(model), config, batches)
    quantize(model, config, batches)
    for name, module in model.named_modules():
        if isinstance(module, SimulatedLinear):
            # Norms and rotary tables of transformers compute in float32, so that a value may go to the next level.
            same = torch.isclose(module.matrix, wanted.get_submodule(name).matrix, rtol=1e-5, atol=1e-5)
            assert float(same.double().mean()) > 0.99, name


@pytest.mark.parametrize("method", ["round", "smoothquant", "rotation"])
@pytest.mark.parametrize("name", ["opt-pre-norm", "llama-grouped"])
def test_brings_the_model_nearer(name, method, make_tiny, make_batches):
    model = make_tiny(name)
    batch = make_batches(1, size=16, seed=5)[0]
    with torch.no_grad():
        wanted = model(**batch).logits
    errors = {}
    for rounding in ("nearest", "gptq"):
        config = QuantizationConfig(method, 3, 16, calibration_sequences=64, rounding=rounding)
        quantized = quantize(copy.deepcopy(model), config, make_batches(4, size=16, seed=7))
        with torch.no_grad():
            errors[rounding] = float((quantized(**batch).logits - wanted).square().mean())
    assert errors["gptq"] < errors["nearest"]


def test_refusals_come_before_anything_is_changed(make_tiny, make_batches):
    model = make_tiny("llama-grouped")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    before = copy.deepcopy(model)
    config = QuantizationConfig("rotation", 4, 4, rounding="gptq", calibration_sequences=4)
    with pytest.raises(UserError, match=r"the input of model\.layers\.1\.mlp\.down_proj is not finite"):
        quantize(model, config, make_batches())
    with pytest.raises(UserError, match="not one sequence"):
        quantize(model, config)
    assert str(model) == str(before)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounding": "up"}, r"quantization\.rounding: 'up' is not one of nearest, gptq"),
        ({"rounding": "gptq", "weight_bits": 16}, r"rounding: 'gptq' is not 'nearest', and there is nothing to round"),
        ({"seed": -1}, r"quantization\.seed: -1"),
        ({"seed": True}, r"quantization\.seed: True"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(UserError, match=message):
        QuantizationConfig(**change)


def test_the_name_says_all_of_it():
    assert QuantizationConfig("rotation", rounding="gptq").name == "rotation-gptq"
    assert QuantizationConfig("smoothquant").name == "smoothquant"
    assert QuantizationConfig("round", rounding="gptq", weight_clip_percent=2.5).name == "round-gptq-clip2.5"
