"""A deployed SpeechLM of either vocabulary writes what the model does that it was made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from sparq.language.branches import begin
from sparq.language.deploy import deploy
from sparq.language.generation import GenerationOptions, generate
from sparq.language.rescoring import Rescoring, best_texts
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS, prompt
from sparq.language.vocabulary import Modality
from sparq.speech.units import Codebook

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
KINDS = {
    "llama": lambda **ids: LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=48, num_key_value_heads=2, **ids)),
    "opt": lambda **ids: OPTForCausalLM(OPTConfig(**SHAPE, word_embed_proj_dim=32, ffn_dim=48, **ids)),
}


@pytest.fixture(params=list(KINDS))
def lm(request, vocabulary):
    """A model with opinions."""
    torch.manual_seed(0)
    model = KINDS[request.param](
        vocab_size=vocabulary.size, pad_token_id=vocabulary.pad_id, bos_token_id=None, eos_token_id=vocabulary.end_id
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15)
    return SpeechLM(
        model, vocabulary, Codebook(np.zeros((vocabulary.units, 2), np.float32), "0", "moonshine-tiny", (5,))
    )


def test_generation_and_rescoring_are_the_same(lm, vocabulary, tmp_path):
    deployed = deploy(lm, tmp_path / "small", bits=32)
    units = [np.random.default_rng(seed).integers(vocabulary.units, size=8 + 4 * seed) for seed in range(4)]
    prompts = [prompt(TASKS["asr"], vocabulary, one) for one in units]
    for options in (
        GenerationOptions(max_pieces=40),
        GenerationOptions(method="beam", beams=3, max_pieces=12, length_penalty=0.5),
        GenerationOptions(method="sample", seed=5, max_pieces=12),
    ):
        wanted, found = (
            generate(one, vocabulary, prompts, Modality.TEXT, options) for one in (lm.model, deployed.model)
        )
        assert found == wanted
        assert sum(map(len, found)) > 20
    texts = [["the train", "what time is it", "see shells"]] * len(units)
    wanted, found = (best_texts(one, vocabulary, units, texts, Rescoring()) for one in (lm.model, deployed.model))
    assert found == wanted


@torch.no_grad()
def test_branches_are_the_same_where_the_last_prompts_end_first(lm, vocabulary, tmp_path):
    deployed, prompts = deploy(lm, tmp_path / "small", bits=32), [[1, 5, 3, 2], [4, 6], [1, 5, 3]]
    ways = [begin(one, prompts, vocabulary.pad_id) for one in (lm.model.eval(), deployed.model)]
    for step in (
        ([0, 1], [[0], [0]], [[2], [3]]),  # the rows that stay are in their places
        ([0, 1], [[0, 0], [0, 0]], [[4, 5], [1, 2]]),
        ([0], [[0, 1]], [[3, 3]]),
        ([0], [[1, 0, 1]], [[2, 1, 4]]),
    ):
        for one in ways:
            one.grow(*step)
        torch.testing.assert_close(ways[1].logits, ways[0].logits, rtol=1e-3, atol=1e-3)
