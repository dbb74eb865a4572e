"""Where recordings are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.assets import embedded
from sparq.errors import UserError
from sparq.speech.audio import load_audio
from sparq.speech.segmentation import split_at_silences

RATE = 16000


def voice(seconds, level=0.1, seed=0):
    """Noise that swells and falls four times a second, as syllables do."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(size=len(time)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))
    return (level * noise).astype(np.float32)


def silence(seconds, level=1e-5):
    return (level * np.random.default_rng(9).normal(size=int(seconds * RATE))).astype(np.float32)


def seconds(pieces):
    return [len(piece) / RATE for piece in pieces]


@pytest.mark.parametrize("nothing", [np.zeros(1, np.float32), np.zeros(RATE * 3, np.float32), silence(2), silence(20)])
def test_silence_has_no_stretches(nothing):
    assert split_at_silences(nothing, 9) == []


@pytest.mark.parametrize("background", [0.0, 1e-5, 5e-3])
@pytest.mark.parametrize("level", [0.003, 0.1])
def test_edges_are_trimmed_and_short_speech_is_not_cut(background, level):
    wave = np.concatenate([np.zeros(RATE * 2), voice(3, level), np.zeros(RATE), voice(1, level), np.zeros(RATE * 3)])
    wave += background * level / 0.1 * np.random.default_rng(5).normal(size=len(wave))
    (piece,) = split_at_silences(wave.astype(np.float32), 9)
    assert 5.0 <= len(piece) / RATE <= 5.5
    np.testing.assert_array_equal(piece, wave.astype(np.float32)[int(1.8 * RATE) :][: len(piece)])


def test_cuts_fall_into_the_longest_silences_in_order():
    parts = [
        voice(4, seed=1),
        silence(0.2),
        voice(3, seed=2),
        silence(0.8),
        voice(5, seed=3),
        silence(0.5),
        voice(2, seed=4),
    ]
    pieces = split_at_silences(np.concatenate(parts), 8)
    assert len(pieces) == 2
    np.testing.assert_allclose(seconds(pieces), [7.4, 7.7], atol=0.05)
    pieces = split_at_silences(np.concatenate(parts), 7)
    np.testing.assert_allclose(seconds(pieces), [4.1, 3.3, 5.4, 2.2], atol=0.1)
    np.testing.assert_array_equal(pieces[0][:RATE], parts[0][:RATE])
    assert len(split_at_silences(np.concatenate(parts), 30)) == 1


def test_who_never_pauses_is_cut_where_it_is_quietest():
    wave = voice(15)
    wave[7 * RATE : 7 * RATE + 3200] *= 0.3
    first, second = split_at_silences(wave, 9)
    assert abs(len(first) / RATE - 7.1) < 0.1
    np.testing.assert_array_equal(np.concatenate([first, second]), wave)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0.05, 12), st.floats(0.01, 3)), min_size=1, max_size=8),
    st.floats(2, 15),
    st.sampled_from([0.0, 1e-5, 3e-3, 0.05]),
)
def test_no_stretch_is_too_long_and_no_speech_is_lost(parts, longest, background):
    spoken = [(voice(speech), np.zeros(int(pause * RATE), np.float32)) for speech, pause in parts]
    wave = np.concatenate([part for pair in spoken for part in pair])
    wave += (background * np.random.default_rng(3).normal(size=len(wave))).astype(np.float32)
    pieces = split_at_silences(wave, longest)
    assert all(0 < len(piece) <= longest * RATE for piece in pieces)
    kept = sum(float(np.square(piece, dtype=float).sum()) for piece in pieces)
    assert kept > 0.95 * float(np.square(wave, dtype=float).sum()) * (1 if background < 0.01 else 0.5)


def test_a_real_recording():
    wave = load_audio(embedded("recordings/two_cities.wav"))
    pieces = split_at_silences(wave, 9)
    assert len(wave) / RATE > 40
    assert max(seconds(pieces)) <= 9
    assert 5 <= len(pieces) <= 12
    # Every cut is in a pause: the edges are far quieter than what is between them.
    for piece in pieces:
        loud = np.sqrt(np.mean(np.square(piece)))
        assert np.sqrt(np.mean(np.square(piece[:320]))) < 0.3 * loud
        assert np.sqrt(np.mean(np.square(piece[-320:]))) < 0.3 * loud


@pytest.mark.parametrize("longest", [0.5, 0.6, 1.0, 1.99])
def test_stretches_may_be_short_for_a_model_with_few_positions(longest):
    wave = np.concatenate([voice(2.3), silence(0.3), voice(1.7, seed=1)])
    pieces = split_at_silences(wave, longest)
    assert max(seconds(pieces)) <= longest
    assert 3.5 < sum(seconds(pieces)) <= len(wave) / RATE


def test_stretches_that_are_too_short_are_refused():
    with pytest.raises(UserError, match=r"0\.40 s are too short"):
        split_at_silences(voice(3), 0.4)
