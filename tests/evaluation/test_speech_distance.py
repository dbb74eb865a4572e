"""Mel-cepstral distortion, warping and pitch errors against values known beforehand and a second implementation."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.errors import UserError
from sparq.evaluation.speech_distance import distortions, log_mel, mel_cepstra, speech_distance, warp
from sparq.speech.pitch import pulse_train


def pulses(hertz: float, seconds: float = 1.0) -> np.ndarray:
    frames = round(seconds * 250)
    return 0.1 * pulse_train(torch.full((1, frames), hertz), 16000, 64)[0].numpy()


def test_a_wave_is_at_no_distance_from_itself():
    wave = pulses(140) + np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.01
    found = speech_distance([wave], [wave])
    assert found.mel_cepstral_distortion < 1e-4
    assert (found.f0_rmse, found.gross_pitch_error, found.voicing_error) == (0, 0, 0)
    assert found.frames == 62


def test_the_distortion_is_the_root_mean_square_difference_of_log_spectra():
    """Where spectra differ in shape alone, √(2 Σ Δc²) · 10 / ln 10 is the RMS of 20 · log₁₀ of their ratio, in dB."""
    bands = (np.arange(80) + 0.5) / 80
    shape = 0.5 * np.cos(3 * np.pi * bands) - 0.2 * np.cos(11 * np.pi * bands)
    flat = np.random.default_rng(0).normal(size=(1, 80))
    found = distortions(mel_cepstra(flat), mel_cepstra(flat + shape + 7.0))[0, 0]  # 7: louder, which does not count
    assert found == pytest.approx(np.sqrt(np.mean((20 * np.log10(np.exp(shape))) ** 2)), rel=1e-9)
    assert found == pytest.approx(10 / math.log(10) * math.sqrt(2 * (0.5**2 + 0.2**2)), rel=1e-9)


def test_distortions_are_of_every_frame_to_every_other():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 24))[0], np.random.default_rng(1).normal(size=(7, 24))
    found = distortions(a, b)
    assert found.shape == (5, 7)
    assert found[3, 4] == pytest.approx(10 / math.log(10) * math.sqrt(2 * np.square(a[3] - b[4]).sum()))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000))
def test_the_path_is_the_cheapest_there_is(n, m, seed):
    costs = np.random.default_rng(seed).uniform(0.1, 1, (n, m))

    @functools.cache
    def cheapest(i, j):
        if i < 0 or j < 0:
            return math.inf
        before = min(cheapest(i - 1, j), cheapest(i, j - 1), cheapest(i - 1, j - 1)) if i or j else 0.0
        return costs[i, j] + before

    pairs = warp(costs)
    assert pairs[0].tolist() == [0, 0]
    assert pairs[-1].tolist() == [n - 1, m - 1]
    steps = np.diff(pairs, axis=0)
    assert ((steps >= 0) & (steps <= 1)).all()
    assert (steps.sum(1) > 0).all()
    assert costs[pairs[:, 0], pairs[:, 1]].sum() == pytest.approx(cheapest(n - 1, m - 1))


def test_a_pause_in_between_is_warped_away():
    random = np.random.default_rng(0)
    words = [random.normal(size=8192).astype(np.float32) * 0.1, pulses(130, 0.512)]
    slow = [words[0], np.zeros(4096, np.float32), words[1]]
    near = speech_distance([np.concatenate(words)], [np.concatenate(slow)])
    far = speech_distance([np.concatenate(words)], [np.concatenate(words[::-1])])
    assert near.mel_cepstral_distortion < 0.3 * far.mel_cepstral_distortion


@pytest.mark.parametrize(("cents", "gross"), [(100, 0), (-250, 0), (400, 100)])
def test_pitch_is_compared_in_cents(cents, gross):
    found = speech_distance([pulses(150)], [pulses(150 * 2 ** (cents / 1200))])
    assert found.f0_rmse == pytest.approx(abs(cents), abs=8)
    assert found.gross_pitch_error == pytest.approx(gross, abs=4)
    assert found.voicing_error < 6


def test_voiced_and_unvoiced_are_told_apart_and_silence_counts_for_nothing():
    noise = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    found = speech_distance([pulses(150)], [noise])
    assert found.voicing_error > 90
    assert math.isnan(speech_distance([pulses(150)], [0 * noise]).f0_rmse)  # nowhere are both voiced
    silence = np.zeros(16000, np.float32)
    padded = speech_distance([np.concatenate([pulses(150), silence])], [np.concatenate([pulses(150), silence])])
    assert padded.frames < 70


def test_all_frames_of_all_recordings_count_alike():
    pairs = [(pulses(150, 1.0), pulses(160, 1.0)), (pulses(120, 0.25), pulses(160, 0.25))]
    one, two = (speech_distance([a], [b]) for a, b in pairs)
    both = speech_distance(*map(list, zip(*pairs, strict=True)))
    assert both.frames == one.frames + two.frames
    weighed = (one.mel_cepstral_distortion * one.frames + two.mel_cepstral_distortion * two.frames) / both.frames
    assert both.mel_cepstral_distortion == pytest.approx(weighed)


def test_short_waves_have_a_frame_and_what_does_not_fit_is_refused():
    assert log_mel(np.ones(10, np.float32), 16000).shape[1] == 80
    assert speech_distance([pulses(150)[:300]], [pulses(150)[:200]]).frames >= 1
    with pytest.raises(UserError, match="1 recordings, but 0 spoken"):
        speech_distance([pulses(150)], [])
    with pytest.raises(UserError, match="0 recordings"):
        speech_distance([], [])
