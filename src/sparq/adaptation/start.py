"""Where adaptation starts: a pretrained language model given the joint vocabulary, or a small one from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from sparq.adaptation.sounds import sound_embeddings
from sparq.config import ModelConfig
from sparq.corpus.utterance import Utterance
from sparq.errors import UserError
from sparq.language.folder import load_language_model
from sparq.language.vocabulary import ExtendedVocabulary, Vocabulary

_NARROWED = 0.1  # of the deviation of output rows, for new ones beside them
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


def pretrained_model(
    name: str | Path, vocabulary: Vocabulary, seed: int = 0, utterances: Sequence[Utterance] = ()
) -> PreTrainedModel:
    """Load a text language model and give it the joint vocabulary.

    With an ``extend`` vocabulary the embeddings of the text stay; with a ``joint`` one all embeddings are new. New ones
    are drawn from a normal distribution with the old ones' mean and deviation in each dimension. The output layer is
    untied where it was tied, as in VoxtLM; behind kept rows its new ones have a tenth of that deviation (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"): as far from their mean as words are, some of a
    thousand pieces would be likelier than the next word. SmolLM2-135M's perplexity of text would grow 1.6 to 2.7 times
    before it learns anything, and so it stays the same to four digits (results/by_hand.json, new_output_rows). The
    input embeddings of speech pieces start as the words in which they are heard (:mod:`sparq.adaptation.sounds`).

    Args:
        name: a folder or a hub name.
        vocabulary: what the model shall read and write.
        seed: of the new embeddings.
        utterances: what the model will learn from.

    Raises:
        UserError: nothing can be loaded from there, or the vocabulary extends another model's tokenizer.
    """
    model = load_language_model(name, "model.name")
    kept = vocabulary.text_size if isinstance(vocabulary, ExtendedVocabulary) else 0
    rows = model.get_input_embeddings().weight.shape[0]
    if kept > rows:
        raise UserError(f"model.name: {name}: has {rows} embeddings, too few for the {kept} ids of the text tokenizer")
    torch.manual_seed(seed)
    _replace_embeddings(model, vocabulary.size, kept)
    if isinstance(vocabulary, ExtendedVocabulary):
        embeddings = model.get_input_embeddings().weight.data
        for index, row in sound_embeddings(vocabulary, utterances, embeddings[:kept], seed).items():
            embeddings[index] = row
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = vocabulary.pad_id
        settings.eos_token_id = vocabulary.end_id
        settings.bos_token_id = None
    # PEFT would look up the model of that name to see what has changed since.
    model.name_or_path = ""
    return model


def _replace_embeddings(model: PreTrainedModel, size: int, kept: int) -> None:
    """Give a model untied embeddings for ``size`` ids, of which the first ``kept`` are the old ones."""
    old_input: Any = model.get_input_embeddings()
    old_output: Any = model.get_output_embeddings()
    new_input = nn.Embedding(size, old_input.embedding_dim)
    new_output = nn.Linear(old_output.in_features, size, bias=old_output.bias is not None)
    with torch.no_grad():
        for new, old in ((new_input.weight, old_input.weight), (new_output.weight, old_output.weight)):
            mean, deviation = old.mean(0), old.std(0)
            narrowed = _NARROWED if kept and new is new_output.weight else 1.0
            new.copy_(mean + narrowed * deviation * torch.randn_like(new))
            new[:kept] = old[:kept]
        if old_output.bias is not None:
            new_output.bias.zero_()
            new_output.bias[:kept] = old_output.bias[:kept]
    model.set_input_embeddings(new_input)
    model.set_output_embeddings(new_output)
    model.config.vocab_size = size
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
