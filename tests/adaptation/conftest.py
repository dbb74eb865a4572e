from __future__ import annotations

from collections.abc import Callable

import pytest
from small_world import SHAPE, joint, sentences

from sparq.config import ModelConfig
from sparq.corpus.utterance import Utterance
from sparq.language.vocabulary import JointVocabulary


@pytest.fixture(scope="session")
def vocabulary() -> JointVocabulary:
    return joint()


@pytest.fixture(scope="session")
def make_sentences() -> Callable[..., list[Utterance]]:
    return sentences


@pytest.fixture
def tiny_shape() -> ModelConfig:
    return SHAPE
