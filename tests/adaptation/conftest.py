from __future__ import annotations

from collections.abc import Callable

import pytest
from small_world import SHAPE, joint, sentences
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

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
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    said = make_sentences(200)
    tokenizer.train_from_iterator([u.text for u in said], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    text = PreTrainedTokenizerFast.from_pretrained(folder)
    lines = [TASKS["tts"].line(vocabulary, text=u.text, units=u.units) for u in said]
    return ExtendedVocabulary.train(lines, 40, vocabulary.units, text)
