"""The joint search against transformers' search, and against all answers there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_generation import (
    BEAM,
    SPEECH,
    TEXT,
    Small,
    all_answers,
    log_probabilities,
    opinionated,
    plain_greedy,
    prompts_of,
)

from sparq.attention import install
from sparq.errors import UserError
from sparq.language.generation import GenerationOptions, candidates
from sparq.language.joint_search import search_together
from sparq.language.tasks import TASKS, prompt


def ids_of(found):
    return [[its.ids for its in answers] for answers in found]


OPTIONS = [
    BEAM,
    GenerationOptions(method="beam", beams=3, length_penalty=0.7, max_pieces=9),
    GenerationOptions(method="beam", beams=5, min_pieces=4, max_pieces=6),
    GenerationOptions(max_pieces=10),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.answers}-{o.length_penalty}-{o.min_pieces}")
@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("target", [TEXT, SPEECH])
def test_with_one_prompt_it_is_the_search_of_transformers(make_tiny, joint_vocabulary, kind, target, options):
    model = make_tiny(kind, joint_vocabulary)
    prompts = prompts_of(joint_vocabulary, target)
    expected = candidates(model, joint_vocabulary, prompts, target, options)
    for batch in (1, 2, 16):
        groups = [[one] for one in prompts]
        found = search_together(model, joint_vocabulary, groups, target, options, batch=batch)
        assert ids_of(found) == expected


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_wide_beam_finds_what_all_prompts_find_best_in_the_mean(make_tiny, penalty, seed):
    model, most, prompts = opinionated(make_tiny, seed), 4, [[1, 4], [2, 2, 4], [3, 1, 2, 4]]
    options = GenerationOptions(method="beam", beams=20, length_penalty=penalty, max_pieces=most)
    (found,) = search_together(model, Small(), [prompts], SPEECH, options)
    scores = [its.log_likelihood for its in found]
    found = [its.ids for its in found]
    assert found[:3] == all_answers(model, prompts, most, penalty)[:3]
    for its, score in zip(found, scores, strict=True):
        tail = [*its, 5] if len(its) < most else its  # an answer as long as allowed has no end
        steps = [(one, i) for one in prompts for i in range(len(tail))]
        all_of_it = sum(float(log_probabilities(model, one + tail[:i])[tail[i]]) for one, i in steps)
        assert score == pytest.approx(all_of_it / len(prompts), rel=1e-5)
    # No prompt alone would have put them so.
    assert all(its[:3] != found[:3] for its in candidates(model, Small(), prompts, SPEECH, options))


@pytest.mark.parametrize("sink", ["none", "zero", "max"])
def test_what_comes_out_does_not_depend_on_the_batch(make_tiny, joint_vocabulary, sink):
    model = install(make_tiny("llama", joint_vocabulary), sink)
    random = np.random.default_rng(0)
    groups = [
        [prompt(TASKS["asr"], joint_vocabulary, random.integers(0, 12, n + more)) for more in range(count)]
        for n, count in ((3, 2), (9, 1), (5, 3), (4, 2), (12, 2))
    ]
    found = [ids_of(search_together(model, joint_vocabulary, groups, TEXT, BEAM, batch=batch)) for batch in (1, 4, 64)]
    assert found[0] == found[1] == found[2]
    assert [
        *itertools.chain(*(ids_of(search_together(model, joint_vocabulary, [one], TEXT, BEAM)) for one in groups))
    ] == found[0]


def test_prompts_that_are_the_same_change_nothing_and_a_beam_of_one_is_greedy(make_tiny, joint_vocabulary):
    model = make_tiny("llama", joint_vocabulary)
    prompts = prompts_of(joint_vocabulary, TEXT)
    alone = ids_of(search_together(model, joint_vocabulary, [[one] for one in prompts], TEXT, BEAM))
    assert ids_of(search_together(model, joint_vocabulary, [[one] * 3 for one in prompts], TEXT, BEAM)) == alone
    found = search_together(model, joint_vocabulary, [[one] for one in prompts], TEXT, GenerationOptions(max_pieces=8))
    assert ids_of(found) == [[plain_greedy(model, joint_vocabulary, one, TEXT, 8)] for one in prompts]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_beams_far_behind_the_best_are_given_up(make_tiny, seed):
    model, prompts = opinionated(make_tiny, seed), [[1, 4], [2, 2, 4], [3, 1, 2, 4]]
    options = GenerationOptions(method="beam", beams=20, max_pieces=4)
    (everything,) = search_together(model, Small(), [prompts], SPEECH, options)
    counts = []
    for margin in (0.0, 0.5, 2.0, 100.0):
        (found,) = search_together(model, Small(), [prompts], SPEECH, options, margin=margin)
        assert all(its.log_likelihood >= found[0].log_likelihood - margin for its in found)
        assert [its for its in everything if its in found] == found
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[0] == 1 < counts[-1] == len(everything)
    greedy = search_together(model, Small(), [prompts], SPEECH, GenerationOptions(max_pieces=4))
    assert search_together(model, Small(), [prompts], SPEECH, options, margin=0.0) == greedy


def test_the_search_stops_where_positions_end(make_tiny, joint_vocabulary):
    model = make_tiny("llama", joint_vocabulary)
    positions = model.config.max_position_embeddings
    long = [*prompts_of(joint_vocabulary, TEXT)[0]]
    long = long[:1] * (positions - 3 - len(long)) + long
    short = prompts_of(joint_vocabulary, TEXT)[1]
    options = GenerationOptions(method="beam", beams=3, min_pieces=40, max_pieces=50)
    (both, one) = ids_of(search_together(model, joint_vocabulary, [[long, short], [short]], TEXT, options))
    assert {len(its) for its in both} == {3}
    assert all(len(its) >= 40 for its in one)


def test_prompts_that_cannot_be_continued(make_tiny, joint_vocabulary):
    model = make_tiny("llama", joint_vocabulary)
    with pytest.raises(UserError, match="prompt 1: is empty"):
        search_together(model, joint_vocabulary, [[[1], []]], TEXT, BEAM)
