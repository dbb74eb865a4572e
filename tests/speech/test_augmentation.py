from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.config import AugmentationConfig
from sparq.errors import UserError
from sparq.speech.audio import RATE
from sparq.speech.augmentation import (
    Disturbance,
    add_noise,
    change_rate,
    disturb,
    draw_disturbance,
    make_noise,
    reverberate,
    room_response,
    telephone_line,
)

ALL = AugmentationConfig(
    share=1, rates=(0.85, 1.15), room=0.5, noise=0.7, telephone=0.3, clipping=0.3, levels=(-20, 6)
)  # fmt: skip


def speechlike(seconds=2.0, seed=0):
    """Noise in bursts, louder at low frequencies, as speech is."""
    noise = make_noise("pink", round(seconds * RATE), np.random.default_rng(seed))
    bursts = np.sin(np.arange(len(noise)) / RATE * 2 * np.pi * 3) > 0
    return (0.2 * noise / np.abs(noise).max() * bursts).astype(np.float32)


def power(waveform):
    return np.mean(np.square(waveform, dtype=np.float64))


def spectrum(waveform):
    """Power and frequency of every bin."""
    return np.abs(np.fft.rfft(waveform)) ** 2, np.fft.rfftfreq(len(waveform), 1 / RATE)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 20000), st.sampled_from([0.0, 1e-4, 0.3, 5.0]))
def test_whatever_is_drawn_is_finite_reproducible_and_of_the_length_of_its_rate(seed, samples, level):
    drawn = draw_disturbance(ALL, random.Random(seed))
    assert drawn == draw_disturbance(ALL, random.Random(seed))
    wave = (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)
    others = [speechlike(0.3), np.zeros(100, np.float32)]
    heard = disturb(wave, drawn, others)
    assert heard.dtype == np.float32
    assert len(heard) == round(samples / drawn.rate)
    assert np.isfinite(heard).all()
    assert np.abs(heard).max(initial=0) <= 1
    np.testing.assert_array_equal(heard, disturb(wave, drawn, others))
    assert heard.any() or not level or not wave.any() or samples < 50


def test_nothing_changes_nothing_and_seeds_differ():
    wave = speechlike()
    np.testing.assert_array_equal(disturb(wave, Disturbance()), wave)
    noisy = [disturb(wave, Disturbance(noise="white", snr=10, seed=seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 0.01


@pytest.mark.parametrize("kind", ["white", "pink", "babble", "hum"])
@pytest.mark.parametrize("snr", [-5.0, 12.0])
def test_the_ratio_of_speech_to_noise_is_reached(kind, snr):
    wave = speechlike().astype(np.float64)
    noise = make_noise(kind, len(wave), np.random.default_rng(3), [speechlike(0.7, 1), speechlike(3.1, 2)])
    added = add_noise(wave, noise, snr) - wave
    assert 10 * np.log10(power(wave) / power(added)) == pytest.approx(snr, abs=1e-6)


def test_silence_stays_silent():
    for drawn in (
        Disturbance(noise="pink", snr=0, reverberation=0.4, telephone=True, clipped=0.01, level=10),
        Disturbance(rate=0.9),
    ):
        assert not disturb(np.zeros(8000, np.float32), drawn).any()


def test_the_colours_of_noise():
    octaves = [(250 * 2**i, 500 * 2**i) for i in range(5)]

    def slope(kind):
        strength, hertz = spectrum(make_noise(kind, RATE * 20, np.random.default_rng(0)))
        levels = [10 * np.log10(strength[(hertz >= low) & (hertz < high)].mean()) for low, high in octaves]
        return np.polyfit(range(5), levels, 1)[0]

    assert slope("white") == pytest.approx(0, abs=0.15)
    assert slope("pink") == pytest.approx(-3.01, abs=0.15)
    strength, hertz = spectrum(make_noise("hum", RATE * 4, np.random.default_rng(1)))
    assert strength[hertz <= 400].sum() > 0.999 * strength.sum()
    assert hertz[strength.argmax()] % 50 == pytest.approx(0, abs=0.3) or hertz[strength.argmax()] % 60 == pytest.approx(
        0, abs=0.3
    )


def test_babble_is_made_of_the_others():
    tone = np.sin(np.arange(RATE) / RATE * 2 * np.pi * 1000).astype(np.float32)
    strength, hertz = spectrum(make_noise("babble", 3 * RATE, np.random.default_rng(0), [tone]))
    assert strength[np.abs(hertz - 1000) < 5].sum() > 0.99 * strength.sum()
    alone = [make_noise(kind, 500, np.random.default_rng(0)) for kind in ("babble", "pink")]
    np.testing.assert_array_equal(*alone)


@pytest.mark.parametrize("rate", [0.85, 1.0, 1.15])
def test_a_rate_moves_pitch_and_times_by_one_factor(rate):
    times = np.arange(2 * RATE) / RATE
    tone = (np.sin(2 * np.pi * 440 * times) * (times > 1.2)).astype(np.float32)
    played = change_rate(tone, rate)
    assert len(played) == round(len(tone) / rate)
    strength, hertz = spectrum(played)
    assert hertz[strength.argmax()] == pytest.approx(440 * rate, abs=1)
    begins = np.argmax(np.abs(played) > 0.1) / RATE
    assert begins == pytest.approx(1.2 / rate, abs=0.002)


@pytest.mark.parametrize("seconds", [0.2, 0.7])
def test_an_echo_decays_in_its_time_and_has_its_energy(seconds):
    direct = 5.0
    response = room_response(seconds, direct, np.random.default_rng(0))
    assert response[0] == 1
    assert 10 * np.log10(1 / np.sum(response[1:] ** 2)) == pytest.approx(direct)
    left = np.cumsum(response[::-1] ** 2)[::-1]  # Schroeder's integral
    late = slice(round(0.06 * RATE), round(0.6 * len(response)))
    fall = np.polyfit(np.arange(len(left))[late] / RATE, 10 * np.log10(left[late]), 1)[0]
    assert -60 / fall == pytest.approx(seconds, rel=0.12)


def test_a_room_is_a_convolution_at_the_power_that_was_there_and_delays_nothing():
    wave, response = speechlike(0.4), room_response(0.3, 0.0, np.random.default_rng(1))
    there = np.convolve(wave, response)[: len(wave)]
    there *= np.sqrt(power(wave) / power(there))
    np.testing.assert_allclose(reverberate(wave, response), there, atol=1e-6)
    click = np.zeros(4000, np.float32)
    click[1000] = 1
    heard = reverberate(click, response)
    assert np.abs(heard[:1000]).max() < 1e-6
    assert np.abs(heard).argmax() == 1000


def test_a_telephone_line_is_narrow_coarse_and_in_time():
    wave = 0.1 * np.random.default_rng(0).standard_normal(RATE * 2)
    heard = telephone_line(wave)
    assert len(heard) == len(wave)
    (before, hertz), (after, _) = spectrum(wave), spectrum(heard)
    inside, outside = (hertz > 450) & (hertz < 3200), (hertz < 180) | (hertz > 3600)
    assert after[inside].sum() == pytest.approx(before[inside].sum(), rel=0.02)
    assert after[outside].sum() < 0.01 * before[outside].sum()
    shifts = np.arange(-20, 21)
    same = [np.dot(wave[100:-100], np.roll(heard, -shift)[100:-100]) for shift in shifts]
    assert shifts[np.argmax(same)] == 0
    tone = 0.5 * np.sin(np.arange(RATE) / RATE * 2 * np.pi * 1000)
    error = (telephone_line(tone) - tone)[500:-500]
    assert 28 < 10 * np.log10(power(tone) / power(error)) < 45  # what 8 bits of mu-law give a sine


def test_clipping_and_level():
    wave = speechlike()
    cut = disturb(wave, Disturbance(clipped=0.01))
    assert 0.008 < np.mean(np.abs(cut) >= np.abs(cut).max() * (1 - 1e-6)) < 0.012
    assert power(disturb(wave, Disturbance(level=-20))) == pytest.approx(power(wave) / 100, rel=1e-4)


def test_what_is_drawn_keeps_to_the_settings():
    drawn = [draw_disturbance(ALL, random.Random(i)) for i in range(1000)]
    assert all(0.85 <= d.rate <= 1.15 and -20 <= d.level <= 6 for d in drawn)
    assert np.mean([d.noise is not None for d in drawn]) == pytest.approx(0.7, abs=0.05)
    assert {d.noise for d in drawn} == {None, "white", "pink", "babble", "hum"}
    assert all(5 <= d.snr <= 30 for d in drawn if d.noise)
    assert np.mean([d.telephone for d in drawn]) == pytest.approx(0.3, abs=0.05)
    assert np.mean([d.reverberation > 0 for d in drawn]) == pytest.approx(0.5, abs=0.05)
    half = AugmentationConfig(share=0.5)
    assert np.mean([draw_disturbance(half, random.Random(i)) is None for i in range(1000)]) == pytest.approx(
        0.5, abs=0.05
    )
    assert draw_disturbance(AugmentationConfig(), random.Random(0)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": (1.1, 0.9)}, r"rates: \[1.1, 0.9\] .expected the lowest value and the highest"),
        ({"snr": (5.0,)}, r"snr: \[5.0\] .expected the lowest"),
        ({"noises": ()}, "noises: .. .expected at least one kind"),
    ],
)
def test_settings_without_sense(settings, message):
    with pytest.raises(UserError, match=message):
        AugmentationConfig(**settings)
