"""Tiny random models of every kind that can be deployed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, OPTConfig, Qwen2Config

import sparq

VOCABULARY = 48
OPT = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
KINDS: dict[str, Callable[..., Any]] = {
    "llama": lambda **more: LlamaConfig(**LLAMA, **more),
    "llama-biased-tied": lambda **more: LlamaConfig(
        **{**LLAMA, "num_key_value_heads": 4}, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, **more
    ),
    "llama-wide-heads": lambda **more: LlamaConfig(**LLAMA, head_dim=16, hidden_act="gelu_pytorch_tanh", **more),
    "mistral": lambda **more: MistralConfig(**LLAMA, sliding_window=None, **more),
    "qwen2": lambda **more: Qwen2Config(**LLAMA, **more),
    "opt": lambda **more: OPTConfig(**OPT, tie_word_embeddings=False, **more),
    "opt-tied": lambda **more: OPTConfig(**OPT, activation_function="gelu", **more),
    "opt-post-norm": lambda **more: OPTConfig(**{**OPT, "word_embed_proj_dim": 16}, do_layer_norm_before=False, **more),
    "opt-plain-norm": lambda **more: OPTConfig(**OPT, layer_norm_elementwise_affine=False, enable_bias=False, **more),
}


def build(kind: str, sink: str | None = None, **settings: Any) -> Any:
    """A float32 model whose norms, biases and sinks are not those of a fresh one."""
    torch.manual_seed(0)
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(KINDS[kind](max_position_embeddings=64, **ids), dtype=torch.float32)
    if sink is not None:
        sparq.install_attention(model, sink, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.uniform_(-0.5, 0.5)
            else:
                # Larger than the usual 0.02, so that what comes out depends on what went in.
                parameter.mul_(10)
    return model.eval()


def padded(size: int = 3, length: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, padded on the left by 0, 3, 6 ..."""
    ids = torch.randint(2, VOCABULARY, (size, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(size):
        mask[row, : 3 * row] = 0
    return ids * mask, mask


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_tiny() -> Callable[..., Any]:
    return build


@pytest.fixture
def make_padded() -> Callable[..., Any]:
    return padded
