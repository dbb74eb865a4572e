"""Likelihoods by the definition, one example at a time, whatever is read together."""

from __future__ import annotations

import numpy as np
import pytest

import sparq
from sparq.attention import install
from sparq.language.likelihood import log_likelihoods
from sparq.language.tasks import TASKS, example

LONG = [np.arange(40) * 7 % 12, np.arange(36) * 5 % 11]
SAID = ["the train leaves", "it's a quarter past", "ten", "the quick brown fox", "now"]


def read(model, examples, *room):
    """Likelihoods, and how many ids the model was given for them, padding included."""
    counts = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: counts.append(given["input_ids"].numel()), with_kwargs=True
    )
    try:
        return log_likelihoods(model, examples, *room), sum(counts)
    finally:
        hook.remove()


@pytest.fixture
def examples(vocabulary):
    task = TASKS["asr"]
    several = [example(task, vocabulary, text=text, units=units) for text in SAID for units in LONG]
    alone = example(task, vocabulary, text="past nine", units=np.array([3, 4, 5]))
    return [*several[:7], alone, *several[7:]]


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("sinks", ["none", "max", "zero"])
def test_texts_of_one_condition_are_judged_as_if_alone(make_tiny, vocabulary, examples, kind, sinks, by_definition):
    model = make_tiny(kind, vocabulary, positions=128)
    install(model, sinks)
    expected = [by_definition(model, made) for made in examples]
    for room in (1, 100, 4096):
        assert log_likelihoods(model, examples, room) == pytest.approx(expected, rel=1e-6)


def test_a_condition_is_read_once(make_tiny, vocabulary, examples):
    model = make_tiny("llama", vocabulary, positions=128)
    _, count = read(model, examples)
    assert count < 0.6 * sum(len(made.input_ids) for made in examples)


def test_a_condition_shorter_than_its_targets_saves_nothing(make_tiny, vocabulary, by_definition):
    """A pass for it would cost more than its ids; sentences, whose condition is one id, would all be one group."""
    model = make_tiny("llama", vocabulary, positions=128)
    written = [example(TASKS["textlm"], vocabulary, text=text) for text in SAID]
    spoken = [example(TASKS["tts"], vocabulary, text=SAID[2], units=units) for units in LONG]
    for made in (written, spoken):
        longest = max(len(one.input_ids) for one in made)
        found, count = read(model, made)
        assert count == len(made) * longest
        assert found == pytest.approx([by_definition(model, one) for one in made], rel=1e-6)


def test_a_deployed_model_reads_conditions_once_too(tmp_path, by_definition):
    lm = sparq.load()
    deployed = sparq.deploy(lm, tmp_path / "float", bits=32)
    units = np.repeat(np.arange(60) * 7 % 100, 2)
    texts = ["it was the best of times", "it was the worst of times", "it", "a tale"]
    examples = [example(TASKS["asr"], lm.vocabulary, text=text, units=units) for text in texts]
    expected = [by_definition(lm.model, made) for made in examples]
    found, count = read(deployed.model, examples)
    assert count < sum(len(made.input_ids) for made in examples)
    np.testing.assert_allclose(found, expected, atol=1e-3)
