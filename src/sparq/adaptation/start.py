"""Where adaptation starts: a pretrained language model given the joint vocabulary, or a small one from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from sparq.config import ModelConfig
from sparq.errors import UserError
from sparq.language.vocabulary import ExtendedVocabulary, Vocabulary

INITIAL_DEVIATION = 0.05  # of new weights in a small model; transformers' 0.02 is meant for widths of 768 and more


def new_model(config: ModelConfig, vocabulary: Vocabulary, seed: int = 0) -> PreTrainedModel:
    """Make a language model with random weights.

    Args:
        config: its architecture and shape.
        vocabulary: gives the number of ids, padding and the end.
        seed: of the weights.
    """
    common: dict[str, Any] = {
        "vocab_size": vocabulary.size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.max_positions,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": False,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": None,
        "eos_token_id": vocabulary.end_id,
    }
    torch.manual_seed(seed)
    if config.architecture == "llama":
        return LlamaForCausalLM(
            LlamaConfig(intermediate_size=config.intermediate_size, initializer_range=INITIAL_DEVIATION, **common)
        )
    return OPTForCausalLM(
        OPTConfig(
            ffn_dim=config.intermediate_size,
            dropout=config.dropout,
            word_embed_proj_dim=config.hidden_size,
            init_std=INITIAL_DEVIATION,
            **common,
        )
    )


def pretrained_model(name: str | Path, vocabulary: Vocabulary, seed: int = 0) -> PreTrainedModel:
    """Load a text language model and give it the joint vocabulary.

    With an ``extend`` vocabulary the embeddings of the text stay and those of the new ids start at their mean, with
    noise; with a ``joint`` one all embeddings are new. The output layer is untied, as in VoxtLM, where it was tied.

    Args:
        name: a folder or a hub name.
        vocabulary: what the model shall read and write.
        seed: of the new embeddings.

    Raises:
        UserError: nothing can be loaded from there.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"model.name: {name}: cannot be loaded as a language model ({reason})") from error
    torch.manual_seed(seed)
    kept = vocabulary.text_size if isinstance(vocabulary, ExtendedVocabulary) else 0
    _replace_embeddings(model, vocabulary.size, kept)
    _set_ids(model.config, vocabulary)
    if model.generation_config is not None:
        _set_ids(model.generation_config, vocabulary)
    return model


def _replace_embeddings(model: PreTrainedModel, size: int, kept: int) -> None:
    old_input = model.get_input_embeddings()
    old_output = model.get_output_embeddings()
    if not isinstance(old_input, nn.Embedding) or old_output is None:
        raise UserError(f"model.name: a {model.config.model_type} model has no embeddings that can be extended")
    model.config.tie_word_embeddings = False
    model.config.vocab_size = size
    new_input = nn.Embedding(size, old_input.embedding_dim)
    new_output = nn.Linear(old_output.in_features, size, bias=old_output.bias is not None)
    with torch.no_grad():
        for new, old in ((new_input.weight, old_input.weight), (new_output.weight, old_output.weight)):
            mean, deviation = old.mean(0), old.std(0)
            new.copy_(mean + deviation * torch.randn_like(new))
            new[:kept] = old[:kept]
        if new_output.bias is not None:
            new_output.bias.zero_()
            new_output.bias[:kept] = old_output.bias[:kept]
    model.set_input_embeddings(new_input)
    model.set_output_embeddings(new_output)


def _set_ids(config: PretrainedConfig | Any, vocabulary: Vocabulary) -> None:
    config.pad_token_id = vocabulary.pad_id
    config.eos_token_id = vocabulary.end_id
    config.bos_token_id = None
