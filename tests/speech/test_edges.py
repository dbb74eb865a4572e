from __future__ import annotations

import numpy as np
import pytest

from sparq.speech.edges import LEAD, TAIL, from_onset, to_silence

BEFORE, BEHIND = round(LEAD * 16000), round(TAIL * 16000)


def spoken(silence, seed=0):
    """Near silence, then noise that is loud from its first sample."""
    random = np.random.default_rng(seed)
    loud = random.choice([-1, 1], 4000) * random.uniform(0.05, 0.9, 4000)
    return np.concatenate([random.uniform(-0.009, 0.009, silence), loud]).astype(np.float32)


@pytest.mark.parametrize("silence", [0, 10, BEFORE, BEFORE + 1, 5600])
@pytest.mark.parametrize("cut", [1, 37, 384, 100_000])
def test_what_comes_before_speech_is_left_out_however_it_is_cut(silence, cut):
    wave = spoken(silence)
    parts = list(from_onset(wave[i : i + cut] for i in range(0, len(wave), cut)))
    np.testing.assert_array_equal(np.concatenate(parts), wave[max(0, silence - BEFORE) :])


def test_silence_within_and_after_speech_stays():
    wave = np.concatenate([spoken(3000), spoken(5000, seed=1), np.zeros(4000, np.float32)])
    np.testing.assert_array_equal(np.concatenate(list(from_onset([wave]))), wave[3000 - BEFORE :])


def test_who_never_speaks_is_given_whole():
    wave = spoken(5000)[:5000]
    np.testing.assert_array_equal(np.concatenate(list(from_onset(np.split(wave, 10)))), wave)
    assert list(from_onset([])) == []


def test_parts_after_the_first_loud_one_are_given_as_they_come():
    asked = []

    def parts():
        for index in range(6):
            asked.append(index)
            yield spoken(0) if index > 1 else spoken(4000)[:4000]

    given = from_onset(parts())
    assert len(next(given)) == BEFORE + 4000
    assert asked == [0, 1, 2]
    next(given)
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("silence", [0, 10, BEHIND - 1, BEHIND, BEHIND + 5600])
@pytest.mark.parametrize("cut", [1, 37, 384, 100_000])
def test_silence_behind_speech_is_made_long_enough_however_it_is_cut(silence, cut):
    wave = spoken(silence)[::-1]
    whole = np.concatenate(list(to_silence(wave[i : i + cut] for i in range(0, len(wave), cut))))
    np.testing.assert_array_equal(whole[: len(wave)], wave)
    assert len(whole) == 4000 + max(silence, BEHIND)
    assert not whole[len(wave) :].any()


def test_parts_are_given_as_they_come_and_silence_stays_as_it_is():
    parts = [spoken(0), spoken(4000)[:4000]]
    given = to_silence(iter(parts))
    assert next(given) is parts[0]
    assert next(given) is parts[1]
    assert len(next(given)) == BEHIND - 4000
    assert len(np.concatenate(list(to_silence([parts[1]])))) == 4000
    assert list(to_silence([])) == []
