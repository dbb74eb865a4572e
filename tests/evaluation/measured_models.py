"""Tiny random models of every kind of architecture that is measured, in float64, and what they are measured on."""

from __future__ import annotations

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)


def opt(*, pre_norm):
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=3,
            ffn_dim=32,
            num_attention_heads=2,
            word_embed_proj_dim=16,
            do_layer_norm_before=pre_norm,
            dropout=0.5,
        )
    )


MODELS = {
    "opt-pre-norm": lambda: opt(pre_norm=True),
    "opt-post-norm": lambda: opt(pre_norm=False),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    ),
}


def model_of(kind):
    torch.manual_seed(0)
    model = MODELS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().train()


def sequences():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 40, (length,), generator=generator) for length in (5, 9, 3, 12)]


def batches(size, side="right"):
    made = []
    for start in range(0, 4, size):
        chosen = sequences()[start : start + size]
        longest = max(map(len, chosen))
        ids, mask = torch.ones(len(chosen), longest).long(), torch.zeros(len(chosen), longest).long()
        for row, one in enumerate(chosen):
            where = slice(0, len(one)) if side == "right" else slice(longest - len(one), None)
            ids[row, where], mask[row, where] = one, 1
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def flows(model, names, ids):
    """What goes into modules and what comes out of them for one sequence: name → two arrays [length, channels]."""
    found = {}

    def watch(name):
        def hook(_, given, output):
            output = output[0] if isinstance(output, tuple) else output
            found[name] = tuple(x.reshape(len(ids), -1).numpy() for x in (given[0], output))

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [watch(name) for name in names]
    with torch.no_grad():
        model(ids[None])
    for handle in handles:
        handle.remove()
    return found
