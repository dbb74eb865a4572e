"""The norms of proposition C.1, against products written out for each architecture."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, Qwen3Config

from sparq.errors import UserError
from sparq.paper.norms import adaptation_norms, bound, own_sequences

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 30}
GROUPED = {**SHAPE, "intermediate_size": 24, "num_key_value_heads": 2}
CONFIGS = {
    "opt": OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32),
    "opt-post-norm": OPTConfig(
        **SHAPE, ffn_dim=24, word_embed_proj_dim=8, max_position_embeddings=32, do_layer_norm_before=False
    ),
    "llama": LlamaConfig(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=32, vocab_size=30),
    "gpt_neox": GPTNeoXConfig(**SHAPE, intermediate_size=24),
}
HEAD = {"qwen3": 8}  # the others have 16 / 4
IDS = torch.arange(2, 26).reshape(2, 12)


def build(kind, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model


def separate(model, kind, layer):
    """W_Q and W_K of a layer as [16, out], and the module that reads X; written down from each architecture."""
    if kind == "gpt2":
        module = model.transformer.h[layer].attn.c_attn
        return module.weight[:, :16], module.weight[:, 16:32], module
    if kind == "gpt_neox":
        module = model.gpt_neox.layers[layer].attention.query_key_value
        rows = module.weight.T.reshape(16, 4, 3, 4)  # a head at a time: q, k, v
        return rows[:, :, 0].reshape(16, 16), rows[:, :, 1].reshape(16, 16), module
    attention = (model.model.decoder if kind.startswith("opt") else model.model).layers[layer].self_attn
    return attention.q_proj.weight.T, attention.k_proj.weight.T, attention.q_proj


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_norms_are_those_of_the_products(kind):
    model, before = build(kind), build(kind, seed=1)
    found = adaptation_norms(model, IDS, before)
    assert len(found) == 2
    factor = HEAD.get(kind, 4) ** -0.5
    for layer, norms in enumerate(found):
        query, key, reads = separate(model, kind, layer)
        old, _, _ = separate(before, kind, layer)
        inputs = []
        hook = reads.register_forward_pre_hook(lambda _, given, into=inputs: into.append(given[0]))
        with torch.no_grad():
            model(IDS)
            hook.remove()
            (x,) = inputs
            assert norms.keys == pytest.approx(float((x @ key).abs().max()))
            assert norms.queries == pytest.approx(float((x @ query).abs().max()) * factor)
            assert norms.adapters == pytest.approx(float((x @ (query - old)).abs().max()) * factor)
    assert all(norms.adapters is None for norms in adaptation_norms(model, IDS))
    assert all(norms.adapters == 0 for norms in adaptation_norms(model, IDS, copy.deepcopy(model)))


def test_models_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"--before: .*q_proj is \[32, 16\] \(expected \[16, 16\]\)"):
        adaptation_norms(build("llama"), IDS, build("qwen3"))


def test_bound():
    assert bound(512) == pytest.approx(math.sqrt(6.2383), rel=1e-4)


@pytest.mark.parametrize(("length", "told"), [(33, "positions"), (1, "begins with")])
def test_lengths_that_cannot_be_written(length, told):
    class Vocabulary:
        @staticmethod
        def encode(_):
            return [5]

    with pytest.raises(UserError, match=rf"--length: {length} .*{told}"):
        own_sequences(build("gpt2"), Vocabulary(), length, 1)
