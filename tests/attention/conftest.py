"""Tiny random models of every supported architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 29
_OPT = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "opt": (OPTConfig, _OPT),
    "opt-post-norm": (OPTConfig, {**_OPT, "do_layer_norm_before": False}),
    "llama": (LlamaConfig, _LLAMA),
    "qwen2": (Qwen2Config, _LLAMA),
    "qwen3": (Qwen3Config, {**_LLAMA, "head_dim": 8}),
    "qwen3-sliding": (
        Qwen3Config,
        {**_LLAMA, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "mistral": (MistralConfig, {**_LLAMA, "sliding_window": 4}),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gpt2-scaled-by-layer": (
        GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gpt2-unscaled": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "scale_attn_weights": False}),
    "gpt_neox": (
        GPTNeoXConfig,
        {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
}


def build(kind: str, **more: Any) -> Any:
    make, settings = MODELS[kind]
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    config = make(**settings, **ids, max_position_embeddings=64, **more)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual 0.02, so that attention is not uniform and every sink shows.
            if parameter.dim() > 1:
                parameter.mul_(15)
    return model.eval()


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """Make a tiny float64 model of a kind in ``MODELS``."""
    return build


@pytest.fixture(params=list(MODELS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param
