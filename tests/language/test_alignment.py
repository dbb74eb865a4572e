"""When words were said, by the attention of the model that wrote them down."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparq
from sparq.deployment import DeployedModel
from sparq.errors import UserError
from sparq.language.alignment import _following, _laid_over, word_times
from sparq.language.tasks import TASKS, prompt
from sparq.speech.voices import load_voice

FRAME = 0.024
SENTENCES = [
    "The committee was appointed by the president to inquire into the state of the prisons.",
    "He had been in the house, and saw nothing of the man who came in the morning.",
]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 4))
def test_words_lie_where_no_other_order_is_better(seed, words, more):
    random = np.random.default_rng(seed)
    places = words + more
    shares, frames = random.dirichlet(np.ones(words), places).T, random.integers(1, 5, places)
    logs = np.log(shares + 1e-3) * frames

    def score(begun):
        edges = [*begun, places]
        return sum(logs[word, edges[word] : edges[word + 1]].sum() for word in range(words))

    every = [(0, *rest) for rest in itertools.combinations(range(1, places), words - 1)]
    found = tuple(_laid_over(shares, frames))
    assert found in every
    assert score(found) == pytest.approx(max(map(score, every)))


def test_the_heads_that_follow_speech_are_chosen():
    random = np.random.default_rng(0)
    attention = random.dirichlet(np.ones(20), (12, 10))
    forth = 0.02 + 0.6 * (np.arange(20)[None] // 2 == np.arange(10)[:, None])
    attention[[3, 7]] = forth
    attention[5] = forth[::-1]  # as sharp, but from the end to the beginning
    np.testing.assert_array_equal(_following(attention), np.stack([forth, forth]))


@pytest.fixture(scope="module")
def shipped():
    return sparq.load()


def test_words_of_a_voice_that_tells_its_times(shipped):
    """Beside what one knows without the model: words of equal length."""
    found, guessed = [], []
    voice = load_voice("hibari")
    for sentence in SENTENCES:
        said = voice.speak(sentence)
        (units,) = shipped.extractor.extract([said.waveform])
        words = word_times(shipped.model, shipped.vocabulary, units, shipped.vocabulary.write_text(sentence), FRAME)
        centres = np.array([(word.start + word.end) / 2 for word in said.words])
        found.append(np.array([(word.start + word.end) / 2 for word in words]) - centres)
        guessed.append((np.arange(len(centres)) + 0.5) / len(centres) * len(units) * FRAME - centres)
    assert np.median(np.abs(np.concatenate(found))) < 0.04
    assert np.median(np.abs(np.concatenate(guessed))) > 0.08


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("which", ["joint_vocabulary", "repeating_vocabulary", "extended_vocabulary"])
def test_words_follow_each_other_to_the_end(make_tiny, request, kind, which):
    vocabulary = request.getfixturevalue(which)
    model = make_tiny(kind, vocabulary, positions=256)
    model.train()
    units = np.random.default_rng(0).integers(0, 12, 40).repeat(2)
    words = word_times(model, vocabulary, units, "what time is it", FRAME)
    assert model.training
    assert [word.text for word in words] == ["what", "time", "is", "it"]
    assert words[0].start == 0
    assert words[-1].end == pytest.approx(len(units) * FRAME)
    assert all(one.end == two.start > one.start for one, two in itertools.pairwise(words))


def test_where_words_have_no_place(make_tiny, joint_vocabulary):
    model = make_tiny("opt", joint_vocabulary, positions=40)
    few = np.array([1, 1, 1, 2, 2])
    assert len(prompt(TASKS["asr"], joint_vocabulary, few)) <= 4
    assert word_times(model, joint_vocabulary, few, "the", FRAME)
    assert word_times(model, joint_vocabulary, few, "what time is it", FRAME) == ()
    assert word_times(model, joint_vocabulary, few, "", FRAME) == ()
    many = np.random.default_rng(0).integers(0, 12, 200)
    assert word_times(model, joint_vocabulary, many, "what time is it", FRAME) == ()


def test_a_deployed_model_does_not_show_its_attention(shipped):
    with pytest.raises(UserError, match="a deployed model does not show"):
        word_times(DeployedModel.__new__(DeployedModel), shipped.vocabulary, np.arange(3), "the", FRAME)
