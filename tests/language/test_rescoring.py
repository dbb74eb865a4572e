from __future__ import annotations

import numpy as np
import pytest
import torch

from sparq.errors import UserError
from sparq.language.generation import GenerationOptions, candidates, generate
from sparq.language.likelihood import log_likelihoods
from sparq.language.rescoring import HEARD, Rescoring, best_texts, best_units
from sparq.language.tasks import IGNORED, TASKS, example, prompt
from sparq.language.vocabulary import Modality

UNITS = [np.array([1, 1, 2, 3, 3]), np.array([0, 4, 4, 2]), np.array([5, 3])]
TEXTS = [["one two", "two", "one"], ["three"], ["two three one", "one", "one"]]


def likelihood(model, vocabulary, task, text, units):
    """By the definition, one example at a time."""
    made = example(TASKS[task], vocabulary, text=text, units=units)
    with torch.no_grad():
        log_p = model(torch.tensor([made.input_ids])).logits[0].log_softmax(-1)
    return sum(float(log_p[i - 1, label]) for i, label in enumerate(made.labels) if label != IGNORED)


@pytest.fixture
def model(make_tiny, vocabulary):
    return make_tiny("llama", vocabulary)


def test_likelihoods_are_those_of_single_examples(model, vocabulary):
    examples = [example(TASKS["asr"], vocabulary, text=t[0], units=u) for t, u in zip(TEXTS, UNITS, strict=True)]
    expected = [likelihood(model, vocabulary, "asr", t[0], u) for t, u in zip(TEXTS, UNITS, strict=True)]
    model.train()
    for room in (1, 4096):
        assert log_likelihoods(model, examples, room) == pytest.approx(expected, rel=1e-6)
    assert model.training
    assert log_likelihoods(model, []) == []


@pytest.mark.parametrize(("channel", "prior"), [(0.0, 0.0), (0.5, 0.0), (0.0, 2.0), (0.3, 0.7), (50.0, 0.0)])
def test_the_text_of_the_largest_weighted_sum_is_taken(model, vocabulary, channel, prior):
    expected = []
    for texts, units in zip(TEXTS, UNITS, strict=True):
        scores = {
            text: likelihood(model, vocabulary, "asr", text, units)
            + channel * likelihood(model, vocabulary, "tts", text, units)
            + prior * likelihood(model, vocabulary, "textlm", text, units)
            for text in texts
        }
        expected.append(max(scores, key=scores.__getitem__))
    assert best_texts(model, vocabulary, UNITS, TEXTS, Rescoring(channel, prior)) == expected


@pytest.mark.parametrize(("channel", "prior"), [(0.0, 0.0), (0.5, 0.0), (0.3, 2.0)])
def test_of_several_views_the_mean_counts_and_the_prior_once(model, vocabulary, channel, prior):
    views = [[np.array([4, 4, 0])], [], [np.array([2, 1]), np.array([1, 5, 0, 3])]]
    expected = []
    for texts, units, others in zip(TEXTS, UNITS, views, strict=True):
        ways = [units, *others]
        scores = {
            text: sum(
                likelihood(model, vocabulary, "asr", text, way)
                + channel * likelihood(model, vocabulary, "tts", text, way)
                for way in ways
            )
            / len(ways)
            + prior * likelihood(model, vocabulary, "textlm", text, units)
            for text in texts
        }
        expected.append(max(scores, key=scores.__getitem__))
    assert best_texts(model, vocabulary, UNITS, TEXTS, Rescoring(channel, prior), views) == expected
    other = [[UNITS[0]] * 3, [], [UNITS[2]]]  # heard the same again: as if heard once
    once = best_texts(model, vocabulary, UNITS, TEXTS, Rescoring(channel, prior))
    assert best_texts(model, vocabulary, UNITS, TEXTS, Rescoring(channel, prior), other) == once


def test_what_a_search_has_told_is_not_asked_again(model, vocabulary):
    task = TASKS["asr"]
    asr = [
        {text: likelihood(model, vocabulary, "asr", text, u) for text in t} for t, u in zip(TEXTS, UNITS, strict=True)
    ]
    expected = best_texts(model, vocabulary, UNITS, TEXTS, Rescoring(0.3, 0.7))
    read = []
    model.register_forward_pre_hook(lambda _, __, given: read.extend(given["input_ids"].tolist()), with_kwargs=True)
    assert best_texts(model, vocabulary, UNITS, TEXTS, Rescoring(0.3, 0.7), told=asr) == expected
    begins = [prompt(task, vocabulary, units) for units in UNITS]
    assert read
    assert not any(ids[: len(one)] == one for ids in read for one in begins)
    # Some may be told, and what is told is believed.
    less = [dict(list(its.items())[:1]) for its in asr]
    assert best_texts(model, vocabulary, UNITS, TEXTS, Rescoring(0.3, 0.7), told=less) == expected
    wrong = [its | {list(its)[-1]: 1e6} for its in asr]
    assert best_texts(model, vocabulary, UNITS, TEXTS, Rescoring(), told=wrong) == [texts[-1] for texts in TEXTS]


def test_the_other_tasks_are_asked_of_the_five_that_asr_finds_likeliest(model, vocabulary):
    texts = ["one", "two", "three", "one two", "two three", "three one", "two one two", "three three one two"]
    left_out = []
    for units in (*UNITS, np.array([2, 2]), np.array([0, 5, 1, 4, 3, 2])):
        heard, said = (
            {text: likelihood(model, vocabulary, task, text, units) for text in texts} for task in ("asr", "tts")
        )
        likeliest = sorted(texts, key=heard.__getitem__)[-5:]
        wanted = max(likeliest, key=said.__getitem__)
        assert best_texts(model, vocabulary, [units], [texts], Rescoring(1e6, 0)) == [wanted]
        left_out.append(wanted != max(texts, key=said.__getitem__))
    assert any(left_out)  # or weighing all of them would do


def test_opinions_differ(model, vocabulary):
    """Otherwise the test above could not tell whose was followed."""
    found = {tuple(best_texts(model, vocabulary, UNITS, TEXTS, Rescoring(c, p))) for c, p in [(0, 0), (50, 0), (0, 50)]}
    assert len(found) > 1


def test_where_nothing_can_be_compared_the_search_has_the_word(make_tiny, vocabulary):
    model = make_tiny("opt", vocabulary, positions=16)
    many = np.arange(40) % 6
    given = [["", "…"], ["one", "one"], ["two", "three"]]
    assert best_texts(model, vocabulary, [UNITS[0], UNITS[1], many], given, Rescoring()) == ["", "one", "two"]


def test_units_in_which_the_text_is_heard_best_are_spoken(model, vocabulary):
    texts = ["one two", "three", "two three one"]
    several = [[[1, 2, 3], [4, 2], [1, 5, 0, 2]], [[2, 1], [2, 1], [0]], [[5], [3, 4]]]
    expected = []
    for text, ways in zip(texts, several, strict=True):
        weights = {"asr": 1.0} | HEARD
        scores = [sum(w * likelihood(model, vocabulary, t, text, its) for t, w in weights.items()) for its in ways]
        expected.append(ways[int(np.argmax(scores))])
    found = best_units(model, vocabulary, texts, several)
    assert [list(units) for units in found] == expected
    assert found != [ways[0] for ways in several]  # or the search alone would do


def test_where_no_units_can_be_compared_the_search_has_the_word(make_tiny, vocabulary):
    model = make_tiny("opt", vocabulary, positions=16)
    many = (np.arange(40) % 6).tolist()
    found = best_units(model, vocabulary, ["one", "two", "one"], [[[], [1, 2]], [[1]], [many, [2]]])
    assert [list(units) for units in found] == [[], [1], many]


@pytest.mark.parametrize("weights", [{"channel": -0.1}, {"prior": float("nan")}])
def test_weights_below_nothing(weights):
    with pytest.raises(UserError, match=rf"rescoring\.{next(iter(weights))}"):
        Rescoring(**weights)


def test_candidates_are_the_best_of_the_beam_in_order(model, vocabulary):
    prompts = [prompt(TASKS["asr"], vocabulary, units) for units in UNITS]
    options = GenerationOptions(method="beam", beams=4, max_pieces=5)
    found = candidates(model, vocabulary, prompts, Modality.TEXT, options)
    assert [len(answers) for answers in found] == [4, 4, 4]
    assert [answers[0] for answers in found] == generate(model, vocabulary, prompts, Modality.TEXT, options)
    for given, answers in zip(prompts, found, strict=True):
        assert len({tuple(answer) for answer in answers}) == 4
        scores = [_score(model, vocabulary, given, answer, options.max_pieces) for answer in answers]
        assert scores == sorted(scores, reverse=True)


def test_draws_differ_and_the_first_is_what_a_single_one_would_be(model, vocabulary):
    prompts = [prompt(TASKS["asr"], vocabulary, units) for units in UNITS]
    options = GenerationOptions(method="sample", draws=3, seed=1, max_pieces=8)
    found = candidates(model, vocabulary, prompts, Modality.TEXT, options)
    assert [len({tuple(answer) for answer in answers}) for answers in found] == [3, 3, 3]
    assert [answers[0] for answers in found] == generate(model, vocabulary, prompts, Modality.TEXT, options)
    assert candidates(model, vocabulary, prompts, Modality.TEXT, options, batch=1) == found
    assert options.answers == 3


def _score(model, vocabulary, given, answer, most):
    tail = [*answer, vocabulary.end_id] if len(answer) < most else answer
    allowed = torch.from_numpy(vocabulary.allowed(Modality.TEXT))
    total = 0.0
    for i, token in enumerate(tail):
        with torch.no_grad():
            total += float(model(torch.tensor([[*given, *tail[:i]]])).logits[0, -1].log_softmax(-1)[token])
    assert all(allowed[token] for token in tail)
    return total
