from __future__ import annotations

from collections.abc import Callable

import pytest
from byte_tokenizer import byte_tokenizer
from small_world import SHAPE, joint, sentences

from sparq.config import ModelConfig
from sparq.corpus.utterance import Utterance
from sparq.language.tasks import TASKS
from sparq.language.vocabulary import ExtendedVocabulary, JointVocabulary


@pytest.fixture(scope="session")
def vocabulary() -> JointVocabulary:
    return joint()


@pytest.fixture(scope="session")
def make_sentences() -> Callable[..., list[Utterance]]:
    return sentences


@pytest.fixture
def tiny_shape() -> ModelConfig:
    return SHAPE


@pytest.fixture(scope="session")
def extended(tmp_path_factory, vocabulary, make_sentences) -> ExtendedVocabulary:
    said = make_sentences(200)
    text = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), [u.text for u in said])
    lines = [TASKS["tts"].line(vocabulary, text=u.text, units=u.units) for u in said]
    return ExtendedVocabulary.train(lines, 40, vocabulary.units, text)
