"""FlatQuant: what it has beyond the other methods that learn, which `test_learnt.py` tests together."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, UNUSUAL, changed_linears, exact, logits, plant_outliers
from torch import nn
from transformers import AutoModelForCausalLM

from sparq.attention import install
from sparq.quantization import QuantizationConfig, Quantizer, quantize
from sparq.quantization.blocks import blocks
from sparq.quantization.flatquant import FlatQuant
from sparq.quantization.kronecker import factor_sizes, kronecker
from sparq.quantization.reconstruction import block_state
from sparq.quantization.simulate import Online, SimulatedLinear
from sparq.quantization.transforms import InputRange

LITTLE = {"calibration_sequences": 8, "epochs": 3, "batch_sequences": 2, "group_size": 8}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_the_product_is_that_of_the_whole_matrix(m, k, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right, x = (
        torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((m, m), (k, k), (2, 3, m * k))
    )
    torch.testing.assert_close(kronecker(x, left, right), x @ torch.kron(left, right))
    torch.testing.assert_close(kronecker(x, left), x @ torch.kron(left, torch.eye(k, dtype=torch.float64)))


@pytest.mark.parametrize(("size", "sizes"), [(576, (24, 24)), (1536, (32, 48)), (7, (1, 7)), (1, (1, 1)), (18, (3, 6))])
def test_factors_are_as_near_to_each_other_as_they_can_be(size, sizes):
    assert factor_sizes(size) == sizes


@pytest.mark.parametrize("kind", [*KINDS, *UNUSUAL])
def test_the_function_stays(kind, build, make_batches):
    model = build(kind)
    before, batch = copy.deepcopy(model), make_batches(1, seed=9)[0]
    quantize(model, QuantizationConfig("flatquant", 16, 16, **LITTLE), make_batches())
    real, wanted = batch["attention_mask"].bool(), logits(before, batch)
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(logits(model, batch)[real], wanted[real], rtol=0, atol=1e-11)
    assert changed_linears(model, before) == [name for block in blocks(before) for name in block.linears]


@pytest.mark.parametrize("kind", ["opt-pre-norm", "llama-grouped", "gpt-neox"])
def test_the_function_stays_under_gates_and_a_sink(kind, build, make_batches):
    model = install(build(kind), "max", gate="per_token")
    before, batch = copy.deepcopy(model), make_batches(1, seed=9)[0]
    quantize(model, QuantizationConfig("flatquant", 16, 16, **LITTLE), make_batches())
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits(model, batch)[real], logits(before, batch)[real], rtol=0, atol=1e-11)


def test_the_fold_by_hand(make_tiny):
    """x·Wᵀ = (x/s)·(L ⊗ R) · (W·diag(s)·(L ⊗ R)⁻ᵀ)ᵀ for what leaves the MLP, with matrices that are no rotations."""
    model = make_tiny("llama-grouped")
    block = blocks(model)[0]
    state = block_state(model.get_submodule(block.name), block)
    ranges = {name: InputRange(*torch.randn(3, state[f"{name}.weight"].shape[1]).double()) for name in block.linears}
    learnt = FlatQuant(block, state, ranges, QuantizationConfig("flatquant", 16, 16))
    starts = [one.matrix.detach() for factors in learnt.transformation.factors for one in factors.children()]
    for start in starts:  # it begins as a rotation
        torch.testing.assert_close(start @ start.T, torch.eye(len(start), dtype=torch.float64))
    with torch.no_grad():
        for parameter in learnt.parameters():
            parameter.add_(torch.rand_like(parameter))
    new, last = learnt(state), block.mlp_output
    whole = torch.kron(new[f"{last}.input_left"], new[f"{last}.input_right"])
    assert whole.shape == (32, 32)
    x = torch.randn(5, 32, dtype=torch.float64)
    given_ = (x / new[f"{last}.input_scale"]) @ whole @ new[f"{last}.weight"].T
    torch.testing.assert_close(given_, x @ state[f"{last}.weight"].T)
    assert new[f"{block.attention.output}.input_left"].shape == (4, 4)
    assert f"{block.attention.output}.input_right" not in new


@pytest.mark.parametrize("packed", [False, True])
def test_states_are_on_their_grids_in_another_basis(packed):
    """Q(y·P)·P⁻¹ head by head, one scale for all heads of a token; packed as GPT-NeoX has it: q, k, v of each head."""
    torch.manual_seed(0)
    heads, width, parts = 3, 4, 3 if packed else 1
    plain, grid = nn.Linear(6, parts * heads * width).double(), Quantizer(4, "token", symmetric=False)
    states = (heads, 3) if packed else (1, 1)
    linear = SimulatedLinear(plain, grid, states, Online(heads=heads, turned=True, states_clipped=True))
    with torch.no_grad():
        linear.state_basis.normal_()
        linear.state_inverse.copy_(torch.linalg.inv(linear.state_basis))
        linear.state_clip[..., 0], linear.state_clip[..., 1] = 0.9, 0.8
    x = torch.randn(5, 6, dtype=torch.float64)
    y, given_ = plain(grid(x)), linear(x)
    for token in range(5):
        for part in range(parts):
            rows = [slice((head * parts + part) * width, (head * parts + part + 1) * width) for head in range(heads)]
            turned = torch.cat([y[token, row] @ linear.state_basis[part, head] for head, row in enumerate(rows)])
            low, high = 0.9 * turned.min(), 0.8 * turned.max()
            step = (high - low) / 15
            levels = ((turned / step).round() + (-low / step).round()).clamp(0, 15) - (-low / step).round()
            for head, row in enumerate(rows):
                back = (levels * step)[head * width : (head + 1) * width] @ torch.linalg.inv(
                    linear.state_basis[part, head]
                )
                torch.testing.assert_close(given_[token, row], back)


def test_a_tokens_grid_covers_its_share():
    linear = SimulatedLinear(nn.Linear(8, 2).double(), Quantizer(4, "token"), None, Online(clip=0.5))
    x = torch.tensor([[7.0, 2, -1, 0.6, 0, 3.5, -6, 3]], dtype=torch.float64)
    wanted = torch.tensor([[3.5, 2, -1, 0.5, 0, 3.5, -3.5, 3]], dtype=torch.float64)
    torch.testing.assert_close(linear.factor(x), wanted)


@pytest.mark.parametrize("kind", ["opt-pre-norm", "llama-grouped"])
def test_gptq_after_the_learning_keeps_its_grids_and_helps(kind, make_tiny, make_batches, tmp_path):
    clean = make_tiny(kind)
    model = copy.deepcopy(clean)
    plant_outliers(model, 5)
    batch, reports, made = make_batches(1, size=8, seed=5)[0], {}, {}
    for rounding in ("nearest", "gptq"):
        config = QuantizationConfig("flatquant", 3, 16, rounding=rounding, **LITTLE)
        told = reports.setdefault(rounding, [])
        made[rounding] = quantize(
            copy.deepcopy(model), config, make_batches(), report=told.append, folder=tmp_path / rounding
        )
    assert reports["gptq"][0].before == reports["nearest"][0].before
    assert sum(one.after for one in reports["gptq"]) < sum(one.after for one in reports["nearest"])
    errors = {name: float((logits(one, batch) - logits(clean, batch)).square().mean()) for name, one in made.items()}
    assert errors["gptq"] < errors["nearest"]
    name = blocks(clean)[0].linears[0]
    nearest, gptq = (made[rounding].get_submodule(name).matrix.reshape(-1, 8) for rounding in ("nearest", "gptq"))
    for one, other in zip(nearest, gptq, strict=True):
        step = one.unique().diff().min()
        assert len(other.unique()) <= 8
        torch.testing.assert_close(other / step, (other / step).round(), rtol=0, atol=1e-6)
    assert not torch.equal(nearest, gptq)
    again = quantize(copy.deepcopy(model), config, make_batches(), folder=tmp_path / "gptq")
    wanted = made["gptq"].state_dict()
    assert all(torch.equal(wanted[key], value) for key, value in again.state_dict().items())


@pytest.mark.parametrize("kind", ["opt-post-norm", "llama-grouped", "qwen3", "gpt-neox"])
def test_cached_generation_equals_uncached_and_comes_back(kind, build, make_batches, tmp_path):
    model = quantize(build(kind), QuantizationConfig("flatquant", 4, 4, **LITTLE | {"epochs": 1}), make_batches())
    model.save_pretrained(tmp_path)
    prompt = {name: value.flip(1) for name, value in make_batches(1, length=8)[0].items()}  # padding on the left
    loaded = exact(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64))
    made = [
        one.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=on, pad_token_id=0).tolist()
        for one in (model, loaded)
        for on in (True, False)
    ]
    assert made[0] == made[1] == made[2] == made[3]
