"""OmniQuant, AffineQuant and FlatQuant: an equivalence before rounding, better than plain rounding after it."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from tiny_models import TOLERANCE, assert_same_function, changed_linears, logits, plant_outliers
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM

from sparq.attention import install, installed, load_pretrained
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, quantize
from sparq.quantization.affinequant import AffineQuant, GradualMatrix, gradual_mask
from sparq.quantization.blocks import blocks
from sparq.quantization.clipping import LearnableClipping
from sparq.quantization.flatquant import FlatQuant
from sparq.quantization.omniquant import OmniQuant
from sparq.quantization.quantizer import Quantizer
from sparq.quantization.reconstruction import _inside, _store, block_state
from sparq.quantization.simulate import SimulatedLinear, replace_linears
from sparq.quantization.transforms import InputRange, away_from_zero

METHODS = {"omniquant": OmniQuant, "affinequant": AffineQuant, "flatquant": FlatQuant}


def without_attention_dropout(model):
    """Dropped probabilities do not sum to 1, and a shift of the values would not come out of training as it went in."""
    for module in model.modules():
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def ranges_of(block, state):
    """Ranges with a middle of their own in every channel, of what each linear of a block reads."""
    return {
        name: InputRange(
            *(torch.randn(state[f"{name}.weight"].shape[1], dtype=torch.float64) + at for at in (0, -3, 3))
        )
        for name in block.linears
    }


@torch.no_grad()
def transform_at_random(model, method):
    """Fold random transformations, shifts among them, into a model, and round nothing; gives the number of shifts."""
    config = QuantizationConfig(method, 16, 8, stability_factor=0.3)
    parts = []
    for block in blocks(model):
        state = block_state(model.get_submodule(block.name), block)
        learnt = METHODS[method](block, state, ranges_of(block, state), config)
        for parameter in learnt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        parts.append((block, state, learnt))
    replace_linears(model, config)
    for block, state, learnt in parts:
        layer = model.get_submodule(block.name)
        _store(layer, _inside(layer, block, learnt(state)))
    for module in model.modules():
        if isinstance(module, SimulatedLinear):
            module.activation = None
    return sum(name.endswith("shift") for _, _, learnt in parts for name, _ in learnt.named_parameters())


@pytest.mark.parametrize("method", list(METHODS))
def test_random_transformations_leave_the_function_alone(kind, method, make_tiny, make_batches):
    model = without_attention_dropout(make_tiny(kind))
    before = copy.deepcopy(model)
    shifts = transform_at_random(model, method)
    assert shifts == (0 if kind in TOLERANCE else 2 * 3)
    assert_same_function(model, before, make_batches(1, seed=9)[0], TOLERANCE.get(kind, 1e-9))
    changed = changed_linears(model, before, rtol=1e-3)
    last = None if method == "flatquant" else -1  # the others do not transform what the MLP's last linear reads
    assert changed == [name for block in blocks(before) for name in block.linears[:last]]


@pytest.mark.parametrize("sink", ["none", "zero", "max", "learned"])
def test_values_are_shifted_only_where_probabilities_sum_to_one(sink, make_tiny, make_batches):
    model = install(make_tiny("opt-pre-norm"), sink)
    before = copy.deepcopy(model)
    assert transform_at_random(model, "affinequant") == (2 * 3 if sink == "none" else 2 * 2)
    batch = make_batches(1, seed=9)[0]
    torch.testing.assert_close(logits(model, batch), logits(before, batch), rtol=0, atol=1e-9)


def test_post_norm_blocks_keep_their_norms_and_the_inputs_are_shifted(make_tiny):
    model = make_tiny("opt-post-norm")
    norms = [m.weight.clone() for m in model.modules() if isinstance(m, nn.LayerNorm)]
    transform_at_random(model, "omniquant")
    after = [m.weight for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert all(torch.equal(*pair) for pair in zip(norms, after, strict=True))
    layer = model.model.decoder.layers[1]
    for linear in (layer.self_attn.k_proj, layer.fc1):
        assert float(linear.input_shift.abs().min()) > 0
        assert float((linear.input_scale - 1).abs().max()) > 0
    assert layer.fc2.input_shift is layer.fc2.input_scale is layer.self_attn.out_proj.input_shift is None


def test_the_fold_by_hand(make_tiny):
    """One head of a grouped model, written out: v W_oᵀ = (v A⁻¹)(W_o Aᵀ)ᵀ, both query heads of a group by one A."""
    model = make_tiny("llama-grouped")
    block = blocks(model)[0]
    state = block_state(model.get_submodule(block.name), block)
    learnt = AffineQuant(block, state, ranges_of(block, state), QuantizationConfig("affinequant", 16, 16))
    with torch.no_grad():
        learnt.transformation.values.basis.matrix.normal_().add_(torch.eye(4) * 300)
    new = learnt(state)
    a = learnt.transformation.values.basis.whole
    v, out = (f"{block.name}.self_attn.{name}.weight" for name in ("v_proj", "o_proj"))
    for query_head in range(4):
        head = query_head // 2
        columns, rows = slice(4 * query_head, 4 * query_head + 4), slice(4 * head, 4 * head + 4)
        torch.testing.assert_close(new[out][:, columns], state[out][:, columns] @ a[head].T)
        scaled = state[v][rows] * learnt.transformation.inputs[0].basis.scale
        torch.testing.assert_close(new[v][rows], torch.linalg.inv(a[head]).T @ scaled)


def test_packed_states_come_back_in_their_order(kind, make_tiny):
    model = make_tiny(kind)
    for block in blocks(model):
        attention = block.attention
        rows = [block_state(model.get_submodule(block.name), block)[f"{name}.weight"] for name in attention.linears]
        q, k, v = attention.split(rows)
        assert q.shape[0] == 4
        assert k.shape[0] == v.shape[0] == attention.heads
        assert q.shape[1] == k.shape[1] == v.shape[1] == attention.width
        assert all(torch.equal(*pair) for pair in zip(attention.join([q, k, v]), rows, strict=True))
    if kind == "gpt-neox":  # q, k and v of head 2 stand together
        head = rows[0].view(4, 3, 4, 16)[2]
        assert all(torch.equal(part[2], head[i]) for i, part in enumerate((q, k, v)))


@pytest.mark.parametrize(
    ("epoch", "epochs", "band"),
    [(0, 5, 1), (1, 5, 1), (2, 5, 2), (3, 5, 3), (4, 5, 4), (0, 1, 4), (0, 2, 1), (1, 2, 4)],
)
def test_the_gradual_mask(epoch, epochs, band):
    f = 0.01
    wanted = {
        1: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        2: [[1, f, 0, 0], [f, 1, f, 0], [0, f, 1, f], [0, 0, f, 1]],
        3: [[1, f, f, 0], [f, 1, f, f], [f, f, 1, f], [0, f, f, 1]],
        4: [[1, f, f, f], [f, 1, f, f], [f, f, 1, f], [f, f, f, 1]],
    }
    torch.testing.assert_close(gradual_mask(4, epoch, epochs, f), torch.tensor(wanted[band], dtype=torch.float))


def test_matrices_are_inverted_in_double_precision():
    scale = torch.logspace(-2, 2, 8)[None].float()
    matrix = GradualMatrix(scale)
    with torch.no_grad():
        matrix.matrix.add_(torch.randn(1, 8, 8) * scale)
        matrix.mask.copy_(gradual_mask(8, 0, 1, 0.5))
    x = torch.randn(1, 8, 3)
    exact = torch.linalg.inv((matrix.matrix * matrix.mask).double()).mT @ x.double()
    torch.testing.assert_close(matrix.dual(x), exact.float(), rtol=1e-6, atol=1e-9)


def test_scales_stay_away_from_zero():
    x = torch.tensor([0.5, 1e-5, 0.0, -1e-5, -2.0], requires_grad=True)
    y = away_from_zero(x)
    torch.testing.assert_close(y.detach(), torch.tensor([0.5, 1e-2, 1e-2, -1e-2, -2.0]))
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(5))


@pytest.mark.parametrize("group_size", [4, 0])
def test_learnable_clipping_is_its_formula(group_size):
    torch.manual_seed(0)
    weight = torch.randn(3, 8, dtype=torch.float64)
    config = QuantizationConfig("omniquant", 3, 16, group_size=group_size)
    clipping = LearnableClipping(weight, config.weight_quantizer(8))
    with torch.no_grad():
        clipping.upper.copy_(torch.randn_like(clipping.upper))
        clipping.lower.copy_(torch.randn_like(clipping.lower))
    given = clipping(weight).detach()
    size = group_size or 8
    cut = {name: p.detach().sigmoid().reshape(3, 8 // size) for name, p in clipping.named_parameters()}
    for row, group in itertools.product(range(3), range(8 // size)):
        part = slice(group * size, (group + 1) * size)
        w = weight[row, part]
        high, low = max(float(w.max() * cut["upper"][row, group]), 0), min(float(w.min() * cut["lower"][row, group]), 0)
        step = (high - low) / 7
        zero = round(-low / step)
        wanted = [(min(max(round(float(x) / step) + zero, 0), 7) - zero) * step for x in w]
        torch.testing.assert_close(given[row, part], torch.tensor(wanted, dtype=torch.float64))


def test_a_group_that_does_not_divide_gives_way_to_the_channel():
    config = QuantizationConfig("omniquant", 4, 4)
    assert config.weight_quantizer(256) == Quantizer(4, "group", symmetric=False, group_size=128)
    assert config.weight_quantizer(192) == Quantizer(4, "channel", symmetric=False)
    assert QuantizationConfig("omniquant", 4, 4, group_size=0).weight_quantizer(256).granularity == "channel"
    assert QuantizationConfig("smoothquant", 4, 4).weight_quantizer(256) == Quantizer(4, "channel")
    assert QuantizationConfig("round", 4, 4, group_size=64).weight_quantizer(256) == Quantizer(4, "group", True, 64)
    assert QuantizationConfig("round", 16, 4).weight_quantizer(256) is None


@pytest.mark.parametrize("method", list(METHODS))
def test_the_gradient_reaches_all_that_is_learnt(kind, method, make_tiny, make_batches):
    model = make_tiny(kind)
    block = blocks(model)[0]
    layer = model.get_submodule(block.name)
    state = block_state(layer, block)
    config = QuantizationConfig(method, 4, 4, group_size=8)
    learnt = METHODS[method](block, state, ranges_of(block, state), config)
    replace_linears(model, config)
    hidden = torch.randn(2, 6, 16, dtype=torch.float64)
    keywords = {}
    if hasattr(model.base_model, "rotary_emb"):
        keywords["position_embeddings"] = model.base_model.rotary_emb(hidden, torch.arange(6)[None])
    if kind != "gpt2":
        keywords["attention_mask"] = None
    output = functional_call(layer, _inside(layer, block, learnt(state)), (hidden,), keywords)
    output = output[0] if isinstance(output, tuple) else output
    (output - torch.randn_like(output)).square().mean().backward()
    for name, parameter in learnt.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name
    names = {name.split(".")[-1] for name, _ in learnt.named_parameters()}
    assert {"upper", "lower", "scale"} <= names
    assert ("shift" in names) == (kind not in TOLERANCE)
    assert ("matrix" in names) == (method != "omniquant")
    scores = any(name.startswith("transformation.scores") for name, _ in learnt.named_parameters())
    assert scores == kind.startswith(("opt", "gpt2"))


LITTLE = {"calibration_sequences": 8, "epochs": 6, "batch_sequences": 2, "group_size": 8}


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("name", ["opt-pre-norm", "llama-grouped", "qwen3", "gpt2", "gpt-neox"])
def test_learning_beats_rounding_against_planted_outliers(name, method, make_tiny, make_batches):
    clean = make_tiny(name)
    model = copy.deepcopy(clean)
    plant_outliers(model, 30)
    batch, reports = make_batches(1, size=8, seed=5)[0], []
    error = {}
    for tried in ("round", method):
        given = copy.deepcopy(model)
        quantize(given, QuantizationConfig(tried, 4, 4, **LITTLE), make_batches(), report=reports.append)
        error[tried] = float((logits(given, batch) - logits(clean, batch)).square().mean())
    assert error[method] < 0.4 * error["round"]
    assert [(report.block, report.blocks) for report in reports] == [(1, 2), (2, 2)]
    assert all(report.after <= report.before for report in reports)
    assert sum(report.after for report in reports) < 0.99 * sum(report.before for report in reports)


@pytest.mark.parametrize("method", list(METHODS))
def test_learning_in_single_precision_with_padding_on_either_side(method, make_tiny, make_batches):
    for name in ("opt-post-norm", "llama-grouped"):
        model = make_tiny(name).float()
        batches = make_batches(2)
        flipped = [{key: value.flip(1) for key, value in batch.items()} for batch in batches]
        made = []
        for given in (batches, flipped):
            config = QuantizationConfig(method, 4, 4, **{**LITTLE, "epochs": 2})
            learnt = quantize(copy.deepcopy(model), config, given)
            assert all(bool(value.isfinite().all()) for value in learnt.state_dict().values())
            made.append(learnt)
        assert all(p.grad is None for one in made for p in one.parameters())
        assert not any(m._forward_pre_hooks for one in made for m in one.modules())


def test_full_precision_learns_nothing_and_changes_nothing(make_tiny, make_batches):
    model, reports = make_tiny("opt-pre-norm").train(), []
    before = copy.deepcopy(model)
    config = QuantizationConfig("affinequant", 16, 16, **LITTLE)
    quantize(model, config, make_batches(), report=reports.append)
    assert model.training
    assert max(report.before for report in reports) < 1e-20
    batch = make_batches(1, seed=3)[0]
    torch.testing.assert_close(logits(model, batch), logits(before, batch), rtol=0, atol=1e-9)


class CutError(Exception):
    pass


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("name", ["opt-post-norm", "gpt2", "qwen3"])
def test_a_learning_that_was_cut_goes_on_to_the_same_weights(name, method, make_tiny, make_batches, tmp_path):
    config = QuantizationConfig(method, 4, 4, **{**LITTLE, "epochs": 2})
    whole, reports = make_tiny(name), []
    quantize(whole, config, make_batches(), report=reports.append)

    def cut(_report):
        raise CutError

    with pytest.raises(CutError):
        quantize(make_tiny(name), config, make_batches(), folder=tmp_path / "learnt", report=cut)
    assert [path.name for path in (tmp_path / "learnt").iterdir()] == ["block-000.safetensors"]
    stamp = (tmp_path / "learnt" / "block-000.safetensors").stat().st_mtime_ns
    resumed, again = make_tiny(name), []
    quantize(resumed, config, make_batches(), folder=tmp_path / "learnt", report=again.append)
    assert again == reports
    assert (tmp_path / "learnt" / "block-000.safetensors").stat().st_mtime_ns == stamp
    wanted, given = whole.state_dict(), resumed.state_dict()
    assert wanted.keys() == given.keys()
    assert all(torch.equal(wanted[key], given[key]) for key in wanted)


@pytest.mark.parametrize("changed", ["settings", "calibration", "weights", "attention"])
def test_blocks_of_another_learning_are_refused(changed, make_tiny, make_batches, tmp_path):
    config = QuantizationConfig("omniquant", 4, 4, **{**LITTLE, "epochs": 1})
    quantize(make_tiny("opt-pre-norm"), config, make_batches(), folder=tmp_path)
    model = make_tiny("opt-pre-norm")
    if changed == "settings":
        config = dataclasses.replace(config, weight_bits=3)
    if changed == "weights":
        model.model.decoder.layers[1].fc2.weight.data[0, 0] += 1e-6
    if changed == "attention":
        install(model, "zero")
    with pytest.raises(UserError, match=r"block-000\.safetensors: was learnt from other"):
        quantize(model, config, make_batches(seed=7 if changed == "calibration" else 1), folder=tmp_path)
    assert not any(isinstance(module, SimulatedLinear) for module in model.modules())


@pytest.mark.parametrize("method", list(METHODS))
def test_saved_and_loaded(kind, method, make_tiny, make_batches, tmp_path):
    model = make_tiny(kind)
    config = QuantizationConfig(method, 4, 4, **{**LITTLE, "epochs": 1})
    quantize(model, config, make_batches())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config.quantization_config.settings == config
    batch = make_batches(1, seed=3)[0]
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    simulated = [m for m in loaded.modules() if isinstance(m, SimulatedLinear)]
    assert all(not m.activation.symmetric for m in simulated)
    for module in simulated:  # at most 16 levels in every group of 8, on grids that are not symmetric
        assert max(len(group.unique()) for group in module.matrix.reshape(-1, 8)) <= 16
    with pytest.raises(UserError, match="quantised already"):
        quantize(loaded, config, make_batches())


def test_outlier_free_attention_is_learnt_with_and_comes_along(make_tiny, make_batches, tmp_path):
    model = install(make_tiny("llama-grouped"), "max")
    quantize(model, QuantizationConfig("omniquant", 4, 4, **LITTLE), make_batches())
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, dtype=torch.float64)
    batch = make_batches(1, seed=3)[0]
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_refusals_leave_the_model_as_it_was(make_tiny, make_batches):
    model = make_tiny("llama-grouped")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = QuantizationConfig("affinequant", 4, 4, **LITTLE)
    with pytest.raises(UserError, match="not one sequence"):
        quantize(model, config, [])
    with pytest.raises(UserError, match="has no input_ids"):
        quantize(model, config, [{"labels": torch.zeros(1, 2)}])
    with pytest.raises(UserError, match=r"dtype: torch\.bfloat16 \(expected float32"):
        quantize(copy.deepcopy(model).bfloat16(), config, make_batches())
    broken = copy.deepcopy(model)
    broken.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the input of model\.layers\.1 is not finite"):
        quantize(broken, config, make_batches())
    for one in (model, broken):
        assert not any(isinstance(m, SimulatedLinear) or m._forward_pre_hooks for m in one.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_attention_that_its_shifts_would_not_go_through_is_refused(make_tiny, make_batches, tmp_path):
    """What was learnt with rows that sum to 1 holds with those alone."""
    model = make_tiny("opt-pre-norm")
    quantize(model, QuantizationConfig("omniquant", 4, 4, **{**LITTLE, "epochs": 1}), make_batches())
    with pytest.raises(UserError, match="'max' cannot replace 'none' in a model that was quantised with it"):
        install(model, "max")
    assert installed(model) is None
    install(make_tiny("opt-pre-norm"), "max").save_pretrained(tmp_path)
    unrestored = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="sparq_attention: is recorded but not installed"):
        quantize(unrestored, QuantizationConfig("omniquant", 4, 4, **LITTLE), make_batches())
