"""The tiny random models of the tests of quantisation, and what several tests do with them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sparq.quantization.blocks import blocks, matrix

VOCABULARY = 50
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "dropout": 0.1,
}
ROTARY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "attention_dropout": 0.1,
}
KINDS = {
    "opt-pre-norm": lambda: OPTForCausalLM(OPTConfig(**OPT, word_embed_proj_dim=16)),
    "opt-post-norm": lambda: OPTForCausalLM(OPTConfig(**OPT, word_embed_proj_dim=8, do_layer_norm_before=False)),
    "opt-plain-norm": lambda: OPTForCausalLM(
        OPTConfig(**OPT, word_embed_proj_dim=16, layer_norm_elementwise_affine=False)
    ),
    "llama-grouped": lambda: LlamaForCausalLM(LlamaConfig(**ROTARY, num_key_value_heads=2)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**ROTARY, num_key_value_heads=2)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**ROTARY, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**ROTARY, num_key_value_heads=2, head_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=64)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**ROTARY, hidden_dropout=0.1)),
}
SHAPE = {"vocab_size": 50, "num_hidden_layers": 2, "max_position_embeddings": 64, "num_attention_heads": 4}
# Widths that are no powers of two, biases where there are none by default, and the other way round.
UNUSUAL = {
    "opt-without-biases": lambda: OPTForCausalLM(
        OPTConfig(**SHAPE, hidden_size=24, ffn_dim=40, word_embed_proj_dim=24, enable_bias=False)
    ),
    "opt-untied": lambda: OPTForCausalLM(
        OPTConfig(**SHAPE, hidden_size=20, ffn_dim=36, word_embed_proj_dim=20, tie_word_embeddings=False)
    ),
    "llama-tied-with-biases": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            hidden_size=24,
            intermediate_size=44,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
        )
    ),
    "qwen3-wide-heads-sliding": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            **SHAPE,
            hidden_size=24,
            intermediate_size=36,
            num_key_value_heads=2,
            head_dim=12,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
        )
    ),
    "opt-wide": lambda: OPTForCausalLM(OPTConfig(**SHAPE, hidden_size=64, ffn_dim=128, word_embed_proj_dim=64)),
    "llama-wide": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_size=64, intermediate_size=176)),
    "neox-in-series": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**SHAPE, hidden_size=24, intermediate_size=36, use_parallel_residual=False)
    ),
}
# The RMS norms and rotary tables of transformers compute in float32 whatever the model's type.
TOLERANCE = dict.fromkeys(("llama-grouped", "mistral", "qwen2", "qwen3"), 1e-5)


def tiny(kind):
    """A random model in float64 whose norms and biases are not the ones and zeros of a fresh model."""
    torch.manual_seed(0)
    model = KINDS[kind]().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.uniform_(-0.5, 0.5)
            elif "embed" not in name and "wte" not in name and "wpe" not in name:
                parameter.normal_(0, 0.3)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


def batches(count=4, size=2, length=12, seed=1):
    """Batches with padding on the right of every second sequence."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(3, VOCABULARY, (size, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1::2, length - 4 :] = 0
        made.append({"input_ids": ids * mask, "attention_mask": mask})
    return made


def exact(model):
    """RMS norms in the model's own precision: those of transformers compute in float32."""
    for name, norm in list(model.named_modules()):
        if type(norm).__name__.endswith("RMSNorm") and not isinstance(norm, nn.RMSNorm):
            new = nn.RMSNorm(norm.weight.shape[0], norm.variance_epsilon, dtype=norm.weight.dtype)
            new.weight = norm.weight
            model.set_submodule(name, new)
    return model


def untrivial(kind):
    """A random float64 model of a kind, whose norms, biases and embeddings are all far from trivial."""
    torch.manual_seed(1)
    model = exact(UNUSUAL[kind]().double().eval() if kind in UNUSUAL else tiny(kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.uniform_(-0.5, 0.5)
            else:
                parameter.normal_(0, 1.2 / parameter.shape[-1] ** 0.5)
    return model


def logits(model, batch, *, train=False):
    torch.manual_seed(7)  # the same dropout in every model
    model.train(train)
    with torch.no_grad():
        return model(**batch).logits


def plant_outliers(model, factor):
    """Make a few channels of every norm large and shrink what reads them: the same function, harder activations."""
    with torch.no_grad():
        for block in blocks(model):
            for siblings in block.smoothed:
                for parameter in siblings.norm.parameters():
                    parameter[:2] *= factor
                for name in siblings.linears:
                    matrix(model.get_submodule(name))[:, :2] /= factor


def assert_same_function(model, before, batch, atol):
    """Logits of real tokens are as before, in evaluation and, with the same dropout, in training."""
    real = batch["attention_mask"].bool()
    for train in (False, True):
        wanted, given = logits(before, batch, train=train)[real], logits(model, batch, train=train)[real]
        torch.testing.assert_close(given, wanted, rtol=0, atol=atol)


def changed_linears(model, before, rtol=1e-5):
    """Names of the linears of the blocks whose weights are other ones than before."""
    return [
        name
        for block in blocks(before)
        for name in block.linears
        if not torch.allclose(before.get_submodule(name).weight, model.get_submodule(name).weight, rtol=rtol)
    ]
