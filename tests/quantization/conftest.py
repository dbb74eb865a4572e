from __future__ import annotations

import pytest
import torch
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


@pytest.fixture
def make_tiny():
    return tiny


@pytest.fixture
def make_batches():
    return batches


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param
