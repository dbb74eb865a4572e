"""A graph is the model that it was made from: every architecture, every attention, cached, padded, in beams."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from sparq.deployment import DeploymentConfig, deploy
from sparq.deployment.packing import pack
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, quantize

FLOAT = DeploymentConfig(32)
ATTENTIONS = [
    {"sink": "none"},
    {"sink": "zero"},
    {"sink": "max"},
    {"sink": "mean"},
    {"sink": "learned"},
    {"sink": "clipped", "gamma": -0.05, "zeta": 1.02},
    {"sink": "max", "gate": "per_token"},
]


def logits(model, ids, mask, **more):
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=positions, **more)


def assert_same(found, wanted, mask, tolerance=1e-4):
    scale = wanted[mask.bool()].abs().max()
    torch.testing.assert_close(found[mask.bool()] / scale, wanted[mask.bool()] / scale, atol=tolerance, rtol=0)


def compare(model, deployed, ids, mask):
    """All at once, and in steps with the cache."""
    wanted = logits(model, ids, mask).logits
    assert_same(logits(deployed, ids, mask).logits, wanted, mask)
    cache, parts = None, []
    for start, stop in itertools.pairwise((0, 7, 8, ids.shape[1])):
        out = logits(deployed, ids[:, start:stop], mask[:, :stop], past_key_values=cache)
        cache = out.past_key_values
        parts.append(out.logits)
    assert cache.get_seq_length() == ids.shape[1]
    assert_same(torch.cat(parts, 1), wanted, mask)


def test_every_architecture(kind, make_tiny, make_padded, tmp_path):
    model = make_tiny(kind)
    deployed = deploy(model, FLOAT, tmp_path)
    compare(model, deployed, *make_padded())
    ids, mask = make_padded(2, 9)
    whole = logits(deployed, ids, mask)
    last = logits(deployed, ids, mask, logits_to_keep=1, use_cache=False)
    torch.testing.assert_close(last.logits, whole.logits[:, -1:])
    assert last.past_key_values is None


@pytest.mark.parametrize("attention", ATTENTIONS, ids=lambda one: "-".join(map(str, one.values())))
@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_every_attention(architecture, attention, make_tiny, make_padded, tmp_path):
    model = make_tiny(architecture, **attention)
    compare(model, deploy(model, FLOAT, tmp_path), *make_padded())


class _Everything(LogitsProcessor):
    """Keeps the scores that a search has seen."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(scores)
        return scores


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize("beams", [1, 4])
def test_searches_find_the_same(architecture, beams, make_tiny, make_padded, tmp_path):
    model = make_tiny(architecture, "max")
    deployed = deploy(model, FLOAT, tmp_path)
    ids, mask = make_padded()
    config = GenerationConfig(max_new_tokens=20, num_beams=beams, num_return_sequences=beams, pad_token_id=0)
    found = []
    for one in (model, deployed):
        processor = _Everything()
        rows = one.generate(input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=[processor])
        found.append((rows, processor.seen))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][0].unique(dim=0).shape[0] == 3 * beams
    for wanted, given in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(given, wanted, atol=1e-3, rtol=0)


def dequantised(model, bits):
    """The same model with the weights that low bits stand for."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                width = 8 if module.weight is model.get_output_embeddings().weight else bits
                offset = getattr(module, "offset", 0)
                module.weight[offset:] = torch.from_numpy(pack(module.weight[offset:], width, name).unpacked())
    return model


@pytest.mark.parametrize("bits", [4, 8])
def test_low_bits_are_the_dequantised_model(kind, bits, make_tiny, make_padded, tmp_path):
    model = make_tiny(kind)
    exact = deploy(model, DeploymentConfig(bits, "float32"), tmp_path)
    ids, mask = make_padded()
    wanted = logits(dequantised(model, bits), ids, mask).logits
    assert_same(logits(exact, ids, mask).logits, wanted, mask, 1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_activations_stay_close(bits, make_tiny, make_padded, tmp_path):
    model = make_tiny("llama", "max")
    fast = deploy(model, DeploymentConfig(bits), tmp_path)
    ids, mask = make_padded()
    wanted, found = logits(dequantised(model, bits), ids, mask).logits, logits(fast, ids, mask).logits
    error = (found - wanted)[mask.bool()].norm() / wanted[mask.bool()].norm()
    assert 1e-5 < error < 0.03


def test_what_comes_out_does_not_depend_on_the_neighbours(make_tiny, make_padded, tmp_path):
    """8-bit activations with one range for a whole batch would fail here."""
    deployed = deploy(make_tiny("llama", "max"), DeploymentConfig(4), tmp_path)
    ids, mask = make_padded(3, 12)
    together = logits(deployed, ids, mask).logits[2, 6:]
    alone = logits(deployed, ids[2:, 6:], mask[2:, 6:]).logits[0]
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("settings", [{"rounding": "nearest"}, {"rounding": "gptq", "group_size": 32}])
def test_simulated_weights_are_deployed_as_they_are(settings, make_tiny, make_padded, tmp_path):
    model = make_tiny("llama", "max")
    ids, mask = make_padded()
    config = QuantizationConfig("smoothquant", weight_bits=4, activation_bits=16, **settings)
    quantize(model, config, [{"input_ids": ids, "attention_mask": mask}])
    exact = deploy(model, DeploymentConfig(4, "float32"), tmp_path)
    assert not hasattr(exact.config, "quantization_config")
    with torch.no_grad():  # what simulated quantisation leaves alone
        for module, width in ((model.get_input_embeddings(), 4), (model.get_output_embeddings(), 8)):
            module.weight.copy_(torch.from_numpy(pack(module.weight, width, "table").unpacked()))
    assert_same(logits(exact, ids, mask).logits, logits(model, ids, mask).logits, mask, 1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QuantizationConfig("round", 4, 4), "activation_bits 4 can only be simulated"),
        (QuantizationConfig("rotation", 4, 16), r"rotation transforms the input of .*\.down_proj .*\(a rotation\)"),
        (QuantizationConfig("flatquant", 4, 16, epochs=1), r"flatquant transforms the input of .* \(a matrix\)"),
    ],
)
def test_what_needs_more_than_its_weights_is_refused(config, message, make_tiny, make_padded, tmp_path):
    ids, mask = make_padded()
    model = quantize(make_tiny("llama"), config, [{"input_ids": ids, "attention_mask": mask}])
    with pytest.raises(UserError, match=message):
        deploy(model, DeploymentConfig(4), tmp_path)
    assert not list(tmp_path.iterdir())


def test_scaled_inputs_of_a_post_norm_model_are_refused(make_tiny, make_padded, tmp_path):
    ids, mask = make_padded()
    model = make_tiny("opt-post-norm")
    quantize(model, QuantizationConfig("smoothquant", 4, 16), [{"input_ids": ids, "attention_mask": mask}])
    with pytest.raises(UserError, match=r"smoothquant transforms the input of .*k_proj as it comes \(a scale\)"):
        deploy(model, DeploymentConfig(4), tmp_path)


def test_what_has_no_graph_is_named(make_tiny, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

    small = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    adapted = get_peft_model(make_tiny("llama"), LoraConfig(target_modules=["q_proj"]))
    odd = make_tiny("llama")
    odd.config.hidden_act = "mish"
    for model, message in (
        (adapted, "carries adapters; merge them"),
        (adapted.get_base_model(), r"q_proj is a Linear; merge adapters|carries adapters"),
        (GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2)), "model_type 'gpt2' has no graph"),
        (make_tiny("llama", "l1"), "the l1 sink has no graph"),
        (odd, "activation 'mish' has no graph"),
        (MistralForCausalLM(MistralConfig(**small, num_key_value_heads=2, sliding_window=8)), "sliding_window 8"),
        (MistralForCausalLM(MistralConfig(**small, num_key_value_heads=2, sliding_window=None)), "has 40 inputs"),
    ):
        with pytest.raises(UserError, match=message):
            deploy(model, DeploymentConfig(4), tmp_path)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"bits": 5}, "deployment.bits: 5 is not one of 4, 8, 32"), ({"activations": "int4"}, "deployment.activations")],
)
def test_values_out_of_range_are_named(keywords, message):
    with pytest.raises(UserError, match=message):
        DeploymentConfig(**keywords)


def test_a_deployed_model_is_not_deployed_or_quantised_again(make_tiny, tmp_path):
    deployed = deploy(make_tiny("llama"), FLOAT, tmp_path)
    for again in (lambda: deploy(deployed, FLOAT, tmp_path), lambda: quantize(deployed, QuantizationConfig("round"))):
        with pytest.raises(UserError, match="is deployed"):
            again()
