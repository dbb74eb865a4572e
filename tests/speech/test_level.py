"""How loud a recording is says nothing."""

import numpy as np
import pytest

from sparq.speech.audio import RATE
from sparq.speech.level import LEVEL, levelled


@pytest.fixture(scope="module")
def spoken():
    """Noise of a changing level."""
    noise = np.random.default_rng(0).normal(size=3 * RATE)
    return (0.1 * noise * np.sin(np.linspace(0, 20, noise.size)) ** 2).astype(np.float32)


def level(waveform):
    return 10 * np.log10(np.square(waveform, dtype=np.float64).mean())


@pytest.mark.parametrize("gain", [3e-3, 0.1, 1.0, 1e4])
def test_the_gain_is_undone(spoken, gain):
    np.testing.assert_allclose(levelled(np.float32(gain) * spoken), levelled(spoken), rtol=1e-4)


def test_the_level_is_that_of_the_loudest_second():
    steady = np.sin(np.arange(RATE) * 0.3).astype(np.float32) / 50
    assert level(levelled(steady)) == pytest.approx(LEVEL, abs=0.1)
    rare = np.concatenate([np.zeros(60 * RATE, np.float32), steady, np.zeros(60 * RATE, np.float32)])
    assert level(levelled(rare)[60 * RATE : 61 * RATE]) == pytest.approx(LEVEL, abs=0.3)


@pytest.mark.parametrize("samples", [0, 1, 511, 512, 600])
def test_the_shortest_recordings_pass(spoken, samples):
    brought = levelled(spoken[-samples:] if samples else spoken[:0])
    assert brought.shape == (samples,)
    assert brought.dtype == np.float32
    assert np.isfinite(brought).all()


def test_silence_stays_silence():
    hiss = np.random.default_rng(1).normal(scale=3e-5, size=RATE).astype(np.float32)
    assert levelled(hiss) is hiss
    assert not levelled(np.zeros(RATE, np.float32)).any()
