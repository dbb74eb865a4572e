from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import SHAPE, UNUSUAL, changed_linears, exact
from torch import nn
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from sparq.attention import SINKS, install, installed, load_pretrained
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, quantize
from sparq.quantization.blocks import architecture, blocks
from sparq.quantization.hadamard import random_signs, rotate
from sparq.quantization.rotation import rotate_model
from sparq.quantization.simulate import SimulatedLinear

PRE_NORM = ["opt-pre-norm", "opt-plain-norm", "llama-grouped", "mistral", "qwen2", "qwen3", "gpt2", "gpt-neox"]


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]


@pytest.mark.parametrize("kind", [*PRE_NORM, *UNUSUAL])
def test_the_function_stays(kind, build, make_batches):
    model = build(kind)
    before, batch = copy.deepcopy(model), make_batches(1, seed=9)[0]
    quantize(model, QuantizationConfig("rotation", 16, 16))
    wanted = logits(before, batch)
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(logits(model, batch), wanted, rtol=0, atol=1e-11)
    assert changed_linears(model, before) == [name for block in blocks(before) for name in block.linears]


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("kind", ["opt-pre-norm", "llama-grouped", "qwen3", "gpt2"])
def test_the_function_stays_under_every_sink(kind, sink, build, make_batches):
    model = install(build(kind), sink, "plain", **({"gamma": -0.05, "zeta": 1.02} if sink == "clipped" else {}))
    if sink == "learned":
        for name, module in model.named_modules():
            if name.endswith("sink_logit"):
                nn.init.normal_(module.weight)
    before, batch = copy.deepcopy(model), make_batches(1, seed=9)[0]
    wanted, ordinary = logits(before, batch), logits(install(copy.deepcopy(model), "none"), batch)
    assert sink == "none" or float((wanted - ordinary).std()) > 0.01
    quantize(model, QuantizationConfig("rotation", 16, 16))
    assert installed(model).sink == sink
    torch.testing.assert_close(logits(model, batch), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["opt-pre-norm", "llama-grouped", "gpt-neox"])
def test_the_residual_stream_is_rotated(kind, build, make_batches):
    model = build(kind)
    before, batch = copy.deepcopy(model), make_batches(1)[0]
    rotate_model(model, 3)
    signs = random_signs(16, torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain, turned = (m(**batch, output_hidden_states=True).hidden_states[:2] for m in (before, model))
    for x, y in zip(plain, turned, strict=True):
        centred = x if kind == "llama-grouped" else x - x.mean(-1, keepdim=True)
        torch.testing.assert_close(y, rotate(centred, signs), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["opt-pre-norm", "llama-tied-with-biases"])
def test_tied_embeddings_are_untied(kind, build):
    model = build(kind)
    assert model.config.tie_word_embeddings
    before = model.get_input_embeddings().weight.clone()
    rotate_model(model, 0)
    assert not model.config.tie_word_embeddings
    model.tie_weights()  # as transformers does on many occasions
    first, last = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert first is not last
    assert not torch.equal(first, before)
    assert not torch.equal(last, first)


def test_one_seed_one_rotation(build):
    states = []
    for seed in (0, 0, 1):
        model = quantize(build("llama-grouped"), QuantizationConfig("rotation", 4, 4, seed=seed))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    down = "model.layers.0.mlp.down_proj.input_signs"
    assert not torch.equal(states[0][down], states[2][down])


def plant_outliers(model):
    """Make channels large, as they are in trained models: of the stream, of the values and inside the MLP."""
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 3] *= 20
        for block in blocks(model):
            output, value, mlp = (
                model.get_submodule(n) for n in (block.attention.output, block.attention.linears[-1], block.mlp_output)
            )
            for linear, channel in ((value, 2), (model.get_submodule(block.smoothed[1].linears[-1]), 7)):
                linear.weight[channel] *= 20
                if linear.bias is not None:
                    linear.bias[channel] *= 20
            output.weight[:, 2] /= 20
            mlp.weight[:, 7] /= 20


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_rotation_helps_most_against_planted_outliers(kind, rounding, build, make_batches):
    model = build(f"{kind}-wide")
    plant_outliers(model)
    batch = make_batches(1, size=8, seed=5)[0]
    error = {}
    for method in ("round", "smoothquant", "rotation"):
        settings = QuantizationConfig(method, 4, 4, calibration_sequences=32, rounding=rounding)
        quantized = quantize(copy.deepcopy(model), settings, make_batches(2, size=16))
        error[method] = float((logits(quantized, batch) - logits(model, batch)).square().mean())
    assert error["rotation"] < 0.7 * min(error["round"], error["smoothquant"])


@pytest.mark.parametrize("kind", [*PRE_NORM, *UNUSUAL])
def test_saved_and_loaded(kind, build, make_batches, tmp_path):
    model = build(kind)
    config = QuantizationConfig("rotation", 4, 4, rounding="gptq", calibration_sequences=4, seed=5)
    quantize(model, config, make_batches())
    model.save_pretrained(tmp_path)
    loaded = exact(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64))
    assert loaded.config.quantization_config.settings == config
    batch = make_batches(1, seed=3)[0]
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    loaded.save_pretrained(tmp_path / "again")
    again = exact(AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float64))
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("sink", ["learned", "clipped"])
@pytest.mark.parametrize("kind", ["opt-pre-norm", "llama-grouped"])
def test_saved_and_loaded_with_another_attention(kind, sink, rounding, build, make_batches, tmp_path):
    model = install(build(kind), sink, "plain", **({"gamma": -0.05} if sink == "clipped" else {}))
    if sink == "learned":
        for layer in model.get_submodule(architecture(model).layers):
            nn.init.normal_(layer.self_attn.sink_logit.weight)
    config = QuantizationConfig("rotation", 4, 4, rounding=rounding, calibration_sequences=4)
    quantize(model, config, make_batches())
    model.save_pretrained(tmp_path)
    loaded = exact(load_pretrained(tmp_path, dtype=torch.float64))
    assert installed(loaded) == installed(model)
    batch = make_batches(1, seed=3)[0]
    assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.mark.parametrize("kind", PRE_NORM)
def test_cached_generation_equals_uncached(kind, build, make_batches):
    model = quantize(build(kind), QuantizationConfig("rotation", 4, 4))
    prompt = {name: value.flip(1) for name, value in make_batches(1, length=8)[0].items()}  # padding on the left
    made = [
        model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=on, pad_token_id=0).tolist()
        for on in (True, False)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["opt-pre-norm", "llama-grouped", "gpt2"])
def test_every_linear_is_on_its_grid(kind, build, make_batches):
    model = quantize(build(kind), QuantizationConfig("rotation", 4, 4))
    inputs = {}
    linears = {name: module for name, module in model.named_modules() if isinstance(module, SimulatedLinear)}
    for name, module in linears.items():
        module.register_forward_pre_hook(lambda m, x, name=name: inputs.update({name: m.factor(x[0])}))
    logits(model, make_batches(1)[0])
    for name, module in linears.items():
        assert max(len(row.unique()) for row in module.matrix) <= 15
        assert max(len(token.unique()) for token in inputs[name].flatten(0, -2)) <= 15
        assert (module.input_signs is not None) == name.endswith(("fc2", "down_proj", "mlp.c_proj"))
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    assert len(first.weight[:, 0].unique()) == len(last.weight[:, 0].unique()) == 50


def test_half_precision_weights(build, make_batches):
    model = build("llama-grouped").to(torch.bfloat16)
    batch = make_batches(1)[0]
    wanted = logits(model, batch)
    quantize(model, QuantizationConfig("rotation", 16, 16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert float((logits(model, batch) - wanted).float().std()) < 0.1 * float(wanted.float().std())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_layer_norm_before": False}, "post-norm model.*choose smoothquant"),
        ({"word_embed_proj_dim": 8}, r"embed_tokens: is 8 wide, not 16"),
        ({"_remove_final_layer_norm": True}, "has no norm before its output layer"),
    ],
)
def test_what_cannot_be_rotated_is_refused_and_stays(change, message):
    shape = {"hidden_size": 16, "ffn_dim": 32, "word_embed_proj_dim": 16}
    model = OPTForCausalLM(OPTConfig(**{**SHAPE, **shape, **change}))
    before = copy.deepcopy(model)
    with pytest.raises(UserError, match=message):
        quantize(model, QuantizationConfig("rotation"))
    assert model.config.to_dict() == before.config.to_dict()
    assert str(model) == str(before)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_gates_are_refused_and_stay(rounding, build, make_batches):
    model = install(build("llama-grouped"), "max", gate="per_token")
    before = copy.deepcopy(model)
    config = QuantizationConfig("rotation", rounding=rounding, calibration_sequences=4)
    with pytest.raises(UserError, match=r"has gated attention.*method 'rotation' mixes them, choose smoothquant"):
        quantize(model, config, make_batches())
    assert str(model) == str(before)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("kind", ["opt-pre-norm", "llama-grouped", "gpt2", "gpt-neox"])
def test_rotated_weights_are_rounded_in_clipped_groups(kind, rounding, build, make_batches):
    model, full = build(kind), build(kind)
    settings = {"calibration_sequences": 4, "weight_clip_percent": 25, "group_size": 8, "rounding": rounding}
    quantize(model, QuantizationConfig("rotation", 4, 16, **settings), make_batches())
    quantize(full, QuantizationConfig("rotation", 16, 16))
    for name, module in model.named_modules():
        if isinstance(module, SimulatedLinear):
            matrices = (one.matrix.detach() for one in (module, full.get_submodule(name)))
            groups, wanted = (matrix.reshape(-1, 8).abs() for matrix in matrices)
            end = wanted.sort(-1).values[:, 5]  # a quarter of eight lies beyond
            assert float((groups.amax(-1) / end).max()) < 1 + 1e-9
            levels = groups / end[:, None] * 7
            torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-6)


def test_what_else_reads_the_stream_is_refused(build):
    model = build("llama-grouped")
    model.model.layers[1].self_attn.head_gate = nn.Linear(16, 4)  # as gated attention has it
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.head_gate: method 'rotation' does not know"):
        quantize(model, QuantizationConfig("rotation"))


def test_adapters_on_the_embeddings_are_refused(build):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(build("llama-grouped"), LoraConfig(target_modules=["embed_tokens"]))
    with pytest.raises(UserError, match=r"embed_tokens: is a Embedding, not a plain embedding; merge adapters"):
        quantize(adapted.base_model.model, QuantizationConfig("rotation"))
