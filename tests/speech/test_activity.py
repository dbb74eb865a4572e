"""Who speaks when, by frames of 32 ms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparq import assets
from sparq.assets import embedded
from sparq.errors import UserError
from sparq.speech.activity import DETECTORS, FRAME, Loudness, load_detector
from sparq.speech.audio import RATE, load_audio
from sparq.speech.voices import load_voice


@pytest.fixture(scope="module")
def silero():
    return load_detector()


@pytest.fixture(scope="module")
def recording():
    return load_audio(embedded("recordings/beckett.wav"))


def test_silero_is_the_published_network(silero, recording):
    """The same weights as the package's TorchScript file, which hears one frame at a time and keeps its own state."""
    wave = recording[: 3 * RATE + 100]
    module = torch.jit.load(embedded("silero-vad").with_name("silero_vad.jit")).eval()
    padded = np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME)
    with torch.no_grad():
        expected = [float(module(torch.from_numpy(frame), RATE)) for frame in padded]
    found = silero.probabilities(wave)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.min() < 0.1 < 0.9 < found.max()


def test_long_recordings_are_heard_in_blocks_that_remember(silero, recording, monkeypatch):
    whole = silero.probabilities(recording)
    monkeypatch.setattr("sparq.speech.activity._BLOCK", 50)
    np.testing.assert_allclose(silero.probabilities(recording), whole, atol=1e-5)


def test_speech_and_what_only_sounds(silero):
    random = np.random.default_rng(0)
    time = np.arange(3 * RATE) / RATE
    said = load_voice("hibari").speak("Come back soon, before it is too late for all of us!").waveform
    others = {
        "noise": 0.1 * random.normal(size=time.size),
        "a chord": 0.1 * sum(np.sin(2 * np.pi * f * time) for f in (262, 330, 392)),
        "silence": np.zeros(time.size),
    }
    assert np.mean(silero.probabilities(said) > 0.5) > 0.7
    for name, wave in others.items():
        assert np.mean(silero.probabilities(wave.astype(np.float32)) > 0.5) < 0.1, name
    assert np.mean(Loudness().probabilities(others["a chord"].astype(np.float32)) > 0.5) > 0.9


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (FRAME, 1), (FRAME + 1, 2), (RATE, 32)])
def test_every_sample_has_a_frame(name, samples, frames):
    found = load_detector(name).probabilities(np.full(samples, 0.01, np.float32))
    assert found.shape == (frames,)
    assert ((found >= 0) & (found <= 1)).all()


def test_loudness_does_not_depend_on_the_gain():
    time = np.arange(4 * RATE) / RATE
    wave = (0.1 * np.sin(900 * time) * (time % 2 < 1) + 1e-3 * np.random.default_rng(1).normal(size=time.size)).astype(
        np.float32
    )
    heard = Loudness().probabilities(wave) > 0.5
    np.testing.assert_array_equal(heard, Loudness().probabilities(0.1 * wave) > 0.5)
    whole = heard[:-1].reshape(2, 62)[:, 1:30], heard[:-1].reshape(2, 62)[:, 33:-1]
    assert whole[0].all()
    assert not whole[1].any()


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(UserError, match="webrtc: no such detector of speech; there are silero, loudness"):
        load_detector("webrtc")
    monkeypatch.setitem(assets._PACKAGED, "silero-vad", ("not_installed", "x.onnx", "silero-vad==6.2.3"))
    with pytest.raises(UserError, match=r"silero-vad: not installed.*pip install silero-vad==6\.2\.3"):
        load_detector()
    load_detector("loudness")
