from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import TOLERANCE, assert_same_function, changed_linears, logits, plant_outliers
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from sparq import quantization
from sparq.attention import install, installed, load_pretrained
from sparq.attention.install import SIMULATED
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, Quantizer, quantize
from sparq.quantization.blocks import architecture, blocks
from sparq.quantization.calibration import calibration_steps, input_ranges
from sparq.quantization.config import METHODS, ROUNDINGS
from sparq.quantization.quantizer import fake_quantize
from sparq.quantization.simulate import METHOD, SimulatedLinear
from sparq.quantization.smoothquant import smoothing_scale


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_smoothing_leaves_the_function_alone(kind, alpha, make_tiny, make_batches):
    model = make_tiny(kind)
    before = copy.deepcopy(model)
    quantize(model, QuantizationConfig("smoothquant", 16, 16, alpha, 8), make_batches())
    assert_same_function(model, before, make_batches(1, seed=9)[0], TOLERANCE.get(kind, 1e-11))
    smoothed = [name for block in blocks(before) for siblings in block.smoothed for name in siblings.linears]
    assert changed_linears(model, before) == smoothed


def test_post_norm_blocks_keep_their_norms(make_tiny, make_batches):
    model = make_tiny("opt-post-norm")
    norms = [m.weight.clone() for m in model.modules() if isinstance(m, nn.LayerNorm)]
    siblings = blocks(model)[1].smoothed[0].linears
    weights = torch.stack([model.get_submodule(name).weight for name in siblings])
    ranges = input_ranges(model, siblings[:1], calibration_steps(model, make_batches(), 8))[siblings[0]]
    quantize(model, QuantizationConfig(calibration_sequences=8), make_batches())
    for name in siblings:  # one scale for q, k and v, from the largest weight of the three
        scale = model.get_submodule(name).input_scale
        torch.testing.assert_close(scale, (ranges / weights.abs().amax((0, 1))).sqrt())
    after = [m.weight for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert all(torch.equal(*pair) for pair in zip(norms, after, strict=True))
    layer = model.model.decoder.layers[0]
    assert layer.fc1.input_scale is not None
    assert layer.fc2.input_scale is None


def test_the_scale_is_the_papers():
    x, w = torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 9.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(smoothing_scale(x, w, 0.5), torch.tensor([2, 1 / 3, 1e-5**0.5], dtype=torch.float64))
    torch.testing.assert_close(smoothing_scale(x, w, 1.0)[:2], x[:2])
    # At one half both sides end with the same range.
    s = smoothing_scale(x, w, 0.5)[:2]
    torch.testing.assert_close(x[:2] / s, w[:2] * s)


def test_calibration_ranges_are_those_of_the_real_tokens(kind, make_tiny, make_batches):
    model = make_tiny(kind)
    names = [siblings.linears[0] for block in blocks(model) for siblings in block.smoothed]
    given = input_ranges(model, names, calibration_steps(model, make_batches(3), 5))
    wanted: dict[str, torch.Tensor] = {}

    def watch(name):
        def hook(_, inputs):
            largest = inputs[0].reshape(-1, inputs[0].shape[-1]).abs().amax(0)
            wanted[name] = torch.maximum(wanted.get(name, largest), largest)

        return hook

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(watch(name))
    for batch in [*make_batches(3)[:2], {k: v[:1] for k, v in make_batches(3)[2].items()}]:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            logits(model, {"input_ids": ids[mask.bool()][None]})
    assert given.keys() == wanted.keys()
    for name in names:
        torch.testing.assert_close(given[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_w4a4_puts_everything_on_its_grid(kind, make_tiny, make_batches):
    model = make_tiny(kind)
    before = copy.deepcopy(model)
    quantize(model, QuantizationConfig("round", 4, 4))
    batch = make_batches(1)[0]
    assert not torch.allclose(logits(model, batch), logits(before, batch), atol=1e-3)
    inputs, outputs = {}, {}
    linears = {name: m for name, m in model.named_modules() if isinstance(m, SimulatedLinear)}
    assert set(linears) == {name for block in blocks(before) for name in block.linears}
    for name, module in linears.items():
        module.register_forward_hook(
            lambda _, x, y, name=name: (inputs.update({name: x[0]}), outputs.update({name: y}))[1] and None
        )
    logits(model, batch)
    heads = model.config.num_attention_heads
    for name, module in linears.items():
        levels = [len(row.unique()) for row in module.matrix]
        assert max(levels) <= 15
        x = Quantizer(4, "token")(inputs[name])
        plain = nn.functional.linear(x, module.matrix, module.bias)
        y = outputs[name]
        if module.states is None:
            torch.testing.assert_close(y, plain)
            continue
        # q, k and v of one token, each on its own grid of 15 levels.
        q_k_v = {
            "gpt2": lambda y: y.chunk(3, -1),
            "gpt-neox": lambda y: y.unflatten(-1, (heads, 3, -1)).unbind(-2),
        }.get(kind, lambda y: [y])
        for part, whole in zip(q_k_v(y), q_k_v(plain), strict=True):
            tokens, reference = part.flatten(2).flatten(0, 1), whole.flatten(2).flatten(0, 1)
            assert max(len(token.unique()) for token in tokens) <= 15
            torch.testing.assert_close(tokens, Quantizer(4, "token")(reference))


def test_other_grids_of_activations(kind, make_tiny, make_batches, tmp_path):
    """Asymmetric grids over four fifths of each token's range, and a scale for each head of q, k and v."""
    model = make_tiny(kind)
    grids = {"activation_grid": "asymmetric", "activation_clip": 0.8, "state_grids": "head"}
    quantize(model, QuantizationConfig("round", 4, 4, **grids))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    batch = make_batches(1)[0]
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    query, seen = loaded.get_submodule(blocks(make_tiny(kind))[0].linears[0]), {}
    query.register_forward_hook(lambda _, x, y: seen.update(x=x[0], y=y))
    logits(loaded, batch)
    x, grid = query.factor(seen["x"]), Quantizer(4, "token", symmetric=False)
    low, high = (0.8 * f(seen["x"], -1, keepdim=True) for f in (torch.amin, torch.amax))
    torch.testing.assert_close(x, fake_quantize(seen["x"], *grid.grid(low, high), 0, 15))
    heads = nn.functional.linear(x, query.matrix, query.bias).unflatten(-1, (-1, 8 if kind == "qwen3" else 4))
    torch.testing.assert_close(seen["y"], grid(heads).flatten(-2))


def test_embeddings_and_output_layer_stay(make_tiny, make_batches):
    for name in ("opt-post-norm", "llama-grouped"):
        model = make_tiny(name)
        before = copy.deepcopy(model)
        quantize(model, QuantizationConfig(weight_bits=4, calibration_sequences=4), make_batches())
        for get in ("get_input_embeddings", "get_output_embeddings"):
            assert torch.equal(getattr(model, get)().weight, getattr(before, get)().weight)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["opt-pre-norm", "llama-grouped"])
def test_smoothing_helps_against_planted_outliers(name, bits, make_tiny, make_batches):
    clean = make_tiny(name)
    model = copy.deepcopy(clean)
    plant_outliers(model, 100)
    batch = make_batches(1, size=8, seed=5)[0]
    torch.testing.assert_close(logits(model, batch), logits(clean, batch), rtol=0, atol=1e-5)
    error = {}
    for method in ("round", "smoothquant"):
        quantized = quantize(
            copy.deepcopy(model), QuantizationConfig(method, bits, bits, calibration_sequences=8), make_batches()
        )
        error[method] = float((logits(quantized, batch) - logits(clean, batch)).square().mean())
    assert error["smoothquant"] < 0.3 * error["round"]


def test_w8a8_is_closer_than_w4a4(kind, make_tiny, make_batches):
    batch = make_batches(1, seed=5)[0]
    error = []
    for bits in (8, 4):
        model = make_tiny(kind)
        wanted = logits(model, batch)
        quantize(model, QuantizationConfig("smoothquant", bits, bits, calibration_sequences=8), make_batches())
        error.append(float((logits(model, batch) - wanted).square().mean()))
    assert error[0] < 0.1 * error[1]


def test_cached_generation_equals_uncached(kind, make_tiny, make_batches):
    model = make_tiny(kind)
    quantize(model, QuantizationConfig("smoothquant", 4, 4, calibration_sequences=8), make_batches())
    prompt = make_batches(1, length=8)[0]
    prompt["attention_mask"] = prompt["attention_mask"].flip(1)  # padding on the left
    prompt["input_ids"] = prompt["input_ids"].flip(1)
    made = [
        model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=cache).tolist() for cache in (True, False)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("method", ["smoothquant", "round"])
def test_saved_and_loaded(kind, method, make_tiny, make_batches, tmp_path):
    model = make_tiny(kind)
    config = QuantizationConfig(method, 4, 8, 0.6, 8)
    quantize(model, config, make_batches())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert loaded.config.quantization_config.settings == config
    batch = make_batches(1, seed=3)[0]
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float64)
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("sink", ["zero", "max", "learned"])
@pytest.mark.parametrize("name", ["opt-post-norm", "llama-grouped"])
def test_outlier_free_attention_comes_along(name, sink, make_tiny, make_batches, tmp_path):
    model = install(make_tiny(name), sink)
    if sink == "learned":
        for layer in model.get_submodule(architecture(model).layers):
            torch.nn.init.constant_(layer.self_attn.sink_logit.weight, 0.7)
    batch = make_batches(1, seed=3)[0]
    full = logits(model, batch)
    quantize(model, QuantizationConfig("smoothquant", 8, 8, calibration_sequences=8), make_batches())
    sunk = logits(model, batch)
    assert 0 < float((sunk - full).abs().max()) < 1
    assert float((sunk - logits(install(copy.deepcopy(model), "none"), batch)).abs().max()) > 1e-2
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, dtype=torch.float64)
    assert installed(loaded).sink == sink
    assert torch.equal(logits(loaded, batch), sunk)
    made = [loaded.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=on).tolist() for on in (True, False)]
    assert made[0] == made[1]


def gated(name, make_tiny):
    """A model whose gates depend on what a norm gives."""
    model = install(make_tiny(name), "none", gate="per_token")
    torch.manual_seed(3)
    for layer_name, parameter in model.named_parameters():
        if "head_gate" in layer_name:
            torch.nn.init.normal_(parameter)
    return model


def test_smoothing_leaves_gates_alone(kind, make_tiny, make_batches):
    model = gated(kind, make_tiny)
    assert blocks(model)[0].smoothed[0].norm is None, "this norm feeds the gates too"
    before = copy.deepcopy(model)
    quantize(model, QuantizationConfig("smoothquant", 16, 16, 0.5, 8), make_batches())
    batch = make_batches(1, seed=9)[0]
    real = batch["attention_mask"].bool()
    wanted, given = logits(before, batch)[real], logits(model, batch)[real]
    torch.testing.assert_close(given, wanted, rtol=0, atol=TOLERANCE.get(kind, 1e-11))
    assert float((given - logits(install(before, "none"), batch)[real]).abs().max()) > 1e-2


@pytest.mark.parametrize("method", ["smoothquant", "round"])
def test_quantised_models_come_back_with_their_gates(kind, method, make_tiny, make_batches, tmp_path):
    model = gated(kind, make_tiny)
    batch = make_batches(1, seed=3)[0]
    full = logits(model, batch)
    quantize(model, QuantizationConfig(method, 8, 8, calibration_sequences=8), make_batches())
    rounded = logits(model, batch)
    assert 0 < float((rounded - full).abs().max()) < 1
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, dtype=torch.float64)
    assert installed(loaded) == installed(model)
    assert torch.equal(logits(loaded, batch), rounded)


def test_gates_of_a_quantised_model_stay(make_tiny, make_batches):
    assert SIMULATED == METHOD
    plain = quantize(make_tiny("llama-grouped"), QuantizationConfig("round"))
    with pytest.raises(UserError, match="gate: 'per_token' cannot be changed in a quantised model"):
        install(plain, gate="per_token")
    model = quantize(gated("llama-grouped", make_tiny), QuantizationConfig("round"))
    with pytest.raises(UserError, match="gate: None cannot be changed in a quantised model"):
        install(model, "max")
    before = logits(model, make_batches(1)[0])
    install(model, "max", gate="per_token")
    assert float((logits(model, make_batches(1)[0]) - before).abs().max()) > 1e-3


def test_clipped_softmax_is_quantised_too(make_tiny, make_batches, tmp_path):
    model = install(make_tiny("opt-post-norm"), "clipped", gamma=-0.05)
    quantize(model, QuantizationConfig("smoothquant", 8, 8, calibration_sequences=8), make_batches())
    model.save_pretrained(tmp_path)
    batch = make_batches(1, seed=3)[0]
    assert torch.equal(logits(load_pretrained(tmp_path, dtype=torch.float64), batch), logits(model, batch))


def test_the_tables_hold_what_can_be_asked_for():
    assert tuple(quantization._METHODS) == METHODS
    assert tuple(quantization._ROUNDINGS) == ROUNDINGS


def test_the_mode_and_the_hooks_are_as_before(make_tiny, make_batches):
    model = make_tiny("opt-pre-norm").train()
    quantize(model, QuantizationConfig(calibration_sequences=4), make_batches())
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_calibration_stops_when_it_has_enough(make_tiny, make_batches):
    taken = []

    def stream():
        for batch in make_batches(6):
            taken.append(batch)
            yield batch

    quantize(make_tiny("opt-pre-norm"), QuantizationConfig(calibration_sequences=5), stream())
    assert len(taken) == 3


def test_too_short_a_calibration_is_said(make_tiny, make_batches, caplog):
    quantize(make_tiny("opt-pre-norm"), QuantizationConfig(calibration_sequences=50), make_batches())
    assert "only 8 sequences of the 50" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "gptq"},
            r"quantization\.method: 'gptq' is not one of smoothquant, rotation, omniquant, affinequant, flatquant, round",
        ),
        ({"weight_bits": 1}, r"quantization\.weight_bits: 1 is not 2 to 8"),
        ({"activation_bits": 12}, r"quantization\.activation_bits: 12"),
        ({"activation_bits": True}, r"quantization\.activation_bits: True"),
        ({"alpha": 1.5}, r"quantization\.alpha: 1\.5"),
        ({"alpha": float("nan")}, r"quantization\.alpha: nan"),
        ({"calibration_sequences": 0}, r"quantization\.calibration_sequences: 0"),
        (
            {"activation_grid": "odd"},
            r"quantization\.activation_grid: 'odd' is not one of symmetric, asymmetric, or none",
        ),
        ({"activation_clip": 0}, r"quantization\.activation_clip: 0 is not a number above 0"),
        ({"method": "flatquant", "activation_clip": 0.9}, r"activation_clip: 0\.9 is not 1, because flatquant learns"),
        ({"state_grids": "row"}, r"quantization\.state_grids: 'row' is not one of token, head"),
        ({"activation_bits": 16, "state_grids": "head"}, r"state_grids: 'head' is not of use: there is no grid"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        QuantizationConfig(**settings)


def test_refusals_leave_the_model_as_it_was(make_tiny, make_batches):
    model = make_tiny("llama-grouped")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="not one sequence"):
        quantize(model, QuantizationConfig(), [])
    with pytest.raises(UserError, match="has no input_ids"):
        quantize(model, QuantizationConfig(), [{"labels": torch.zeros(1, 2)}])
    with pytest.raises(UserError, match="a sequence has no token"):
        quantize(model, QuantizationConfig(), [{k: v * 0 for k, v in make_batches(1)[0].items()}])
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(isinstance(m, SimulatedLinear) for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_non_finite_activations_are_refused(make_tiny, make_batches):
    model = make_tiny("opt-pre-norm")
    with torch.no_grad():
        model.model.decoder.layers[1].fc2.weight[0, 0] = float("inf")
        model.model.decoder.layers[0].fc2.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj is not finite"):
        quantize(model, QuantizationConfig(), make_batches())


def test_other_architectures_are_refused():
    bert = BertForMaskedLM(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    )
    with pytest.raises(UserError, match="model_type: 'bert' has no block table"):
        quantize(bert, QuantizationConfig("round"))


def test_quantised_and_adapted_models_are_refused(make_tiny):
    from peft import LoraConfig, get_peft_model

    model = quantize(make_tiny("opt-pre-norm"), QuantizationConfig("round"))
    with pytest.raises(UserError, match="quantised already"):
        quantize(model, QuantizationConfig("round"))
    adapted = get_peft_model(make_tiny("opt-pre-norm"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"self_attn\.q_proj: is a Linear.*merge adapters"):
        quantize(adapted.base_model.model, QuantizationConfig("round"))
    with pytest.raises(UserError, match=r"merge adapters"):
        quantize(adapted, QuantizationConfig("round"))


def test_every_row_of_the_table_names_modules_that_are_there(kind, make_tiny):
    model = make_tiny(kind)
    row = architecture(model)
    assert len(blocks(model)) == len(model.get_submodule(row.layers)) == 2
    if kind != "opt-post-norm":
        assert isinstance(model.get_submodule(row.final_norm), nn.Module)
    folded = [siblings.norm is not None for block in blocks(model) for siblings in block.smoothed]
    assert folded == [kind not in {"opt-post-norm", "opt-plain-norm"}] * 4
