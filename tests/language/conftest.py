"""Small vocabularies, and tiny random models over them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from sparq.language.tasks import IGNORED, TASKS, Example
from sparq.language.vocabulary import ExtendedVocabulary, JointVocabulary, Vocabulary

UNITS = 12
SENTENCES = [
    "the train leaves at half past nine",
    "what time is it now",
    "it's a quarter past ten, isn't it",
    "she sells sea shells by the sea shore",
    "how much wood would a woodchuck chuck",
    "the quick brown fox jumps over the lazy dog",
]


class Plain:
    """Writes lines before there is a vocabulary."""

    write_text = staticmethod(str)

    @staticmethod
    def write_units(units):
        return "".join(chr(0x4E00 + int(u)) for u in units)


def lines(count: int = 60) -> list[str]:
    random = np.random.default_rng(0)
    made = []
    for index in range(count):
        units = random.choice(UNITS, size=20, p=np.arange(1, UNITS + 1) / 78)
        task = TASKS["asr" if index % 2 else "tts"]
        made.append(task.line(Plain(), text=SENTENCES[index % len(SENTENCES)].replace(",", ""), units=units))
    return made


def joint(**more: Any) -> JointVocabulary:
    return JointVocabulary.train(lines(), 110, UNITS, **more)


def extended(folder: Path, **more: Any) -> ExtendedVocabulary:
    return ExtendedVocabulary.train(lines(), 30, UNITS, byte_tokenizer(folder, SENTENCES), **more)


@pytest.fixture(scope="session")
def joint_vocabulary() -> JointVocabulary:
    return joint()


@pytest.fixture(scope="session")
def repeating_vocabulary() -> JointVocabulary:
    return joint(deduplicate=False)


@pytest.fixture(scope="session")
def extended_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> ExtendedVocabulary:
    return extended(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session", params=["joint", "extend"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return request.getfixturevalue({"joint": "joint_vocabulary", "extend": "extended_vocabulary"}[request.param])


@pytest.fixture
def make_joint() -> Callable[..., JointVocabulary]:
    return joint


SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "llama": lambda n, **m: LlamaConfig(**SHAPE, intermediate_size=24, num_key_value_heads=2, **n, **m),
    "opt": lambda n, **m: OPTConfig(**SHAPE, word_embed_proj_dim=16, ffn_dim=24, **n, **m),
    "gpt2": lambda n, **m: GPT2Config(n_embd=16, n_layer=2, n_head=4, **n, **m),
}


def tiny(kind: str, vocabulary: Vocabulary, *, positions: int = 64, dtype: Any = torch.float64, **more: Any) -> Any:
    ids = {
        "vocab_size": vocabulary.size,
        "pad_token_id": vocabulary.pad_id,
        "bos_token_id": None,
        "eos_token_id": vocabulary.end_id,
        "max_position_embeddings": positions,
    }
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(KINDS[kind](ids, **more), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual 0.02, so that what comes out depends on what went in.
            if parameter.dim() > 1:
                parameter.mul_(15)
    return model.eval()


@pytest.fixture
def make_tiny() -> Callable[..., Any]:
    return tiny


@pytest.fixture(scope="session")
def make_session_model() -> Callable[[Vocabulary], Any]:
    """One model a vocabulary, for tests that call many times."""
    return functools.cache(lambda vocabulary: tiny("llama", vocabulary))


def likelihood(model: Any, made: Example) -> float:
    """Log-likelihood of an example's target by the definition, read alone."""
    with torch.no_grad():
        log_p = model(torch.tensor([made.input_ids])).logits[0].log_softmax(-1)
    return sum(float(log_p[place - 1, label]) for place, label in enumerate(made.labels) if label != IGNORED)


@pytest.fixture
def by_definition() -> Callable[[Any, Example], float]:
    return likelihood
