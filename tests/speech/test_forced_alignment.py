from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.speech.forced_alignment import align

PAUSE = 0


def paths(sequence, frames):
    """Every way to spread frames over a sequence, with any of its pauses left out."""
    optional = [i for i, symbol in enumerate(sequence) if symbol == PAUSE]
    for count in range(len(optional) + 1):
        for out in itertools.combinations(optional, count):
            kept = [symbol for i, symbol in enumerate(sequence) if i not in out]
            for cuts in itertools.combinations(range(1, frames), len(kept) - 1) if kept else ():
                lengths = np.diff([0, *cuts, frames])
                if (lengths > 0).all():
                    yield np.repeat(kept, lengths)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([[1], [0, 1, 0], [0, 1, 2, 0], [1, 1, 2], [0, 2, 0, 1, 0], [1, 0, 1], [0, 1, 0, 2]]),
    st.integers(1, 7),
    st.integers(0, 2**31),
)
def test_the_likeliest_of_all_paths(sequence, frames, seed):
    scores = np.random.default_rng(seed).normal(size=(frames, 3))
    found = align(scores, sequence, PAUSE)
    totals = [(scores[np.arange(frames), path].sum(), tuple(path)) for path in paths(sequence, frames)]
    if not totals:
        assert found is None
        return
    best = max(totals)
    assert found is not None
    assert tuple(found[0]) == best[1]
    assert found[1] == pytest.approx(best[0] / frames)


def test_a_phone_that_comes_twice_is_passed_twice():
    scores = np.log(np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]))
    path, mean = align(scores, [0, 1, 2, 1, 0], PAUSE)
    assert path.tolist() == [1, 2, 1, 0]
    assert mean == pytest.approx(np.log(0.8))


@pytest.mark.parametrize(("frames", "sequence"), [(2, [1, 2, 1]), (0, [1]), (4, [])])
def test_what_cannot_be_aligned(frames, sequence):
    assert align(np.zeros((frames, 3)), sequence, PAUSE) is None
