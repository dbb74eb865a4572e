from __future__ import annotations

import os

import hibari
import numpy as np
import pytest
import soxr

from sparq.errors import UserError
from sparq.speech import voices
from sparq.speech.voices import NothingToSayError, load_voice


@pytest.fixture(scope="module")
def voice():
    return load_voice("hibari")


def test_hibari_says_what_the_package_says(voice):
    text = "A quiet room. It rains."
    ours = voice.speak(text, speed=1.1, seed=7).waveform
    theirs = soxr.resample(hibari.Hibari()(text, speed=1.1, seed=7), 24000, 16000)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_words_are_in_order_and_inside_the_audio(voice):
    text = "Stop. The cat sat, then it slept."
    utterance = voice.speak(text)
    assert [word.text for word in utterance.words] == text.split()
    times = [t for word in utterance.words for t in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= len(utterance.waveform) / 16000


def test_pauses_are_quieter_than_words(voice):
    words = voice.speak("Stop. The cat sat.")
    energy = words.waveform**2
    stop, the, *_ = (slice(int(w.start * 16000), int(w.end * 16000)) for w in words.words)
    pause = slice(stop.stop, the.start)
    assert min(energy[stop].mean(), energy[the].mean()) > 20 * energy[pause].mean()


def test_a_long_word_lasts_longer_than_a_short_one(voice):
    durations = [word.end - word.start for word in voice.speak("one two seven a refrigerator").words]
    assert all(0.02 < d < 1.5 for d in durations)
    assert durations[3] < durations[1] < durations[4]


def test_words_that_are_read_otherwise_than_written_have_no_times(voice):
    assert voice.speak("In 1984.").words is None


def test_seed_and_speed(voice):
    a, b, c = (voice.speak("Good day.", seed=s).waveform for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-4
    assert len(voice.speak("Good day.", speed=1.5).waveform) < 0.8 * len(a)


@pytest.mark.parametrize("text", ["--", "", " . ", "\n"])
def test_nothing_to_say(voice, text):
    with pytest.raises(NothingToSayError, match="nothing to pronounce"):
        voice.speak(text)


def test_bad_speed_and_name(voice):
    with pytest.raises(UserError, match="speed: 0"):
        voice.speak("hello", speed=0)
    with pytest.raises(UserError, match="robot: no such voice; there are hibari, piper-joe"):
        load_voice("robot")


@pytest.fixture
def piper(tmp_path, monkeypatch):
    """A program in piper's place, so that how it is called is tested where it is not installed."""
    program = tmp_path / "piper"
    monkeypatch.setattr(voices, "embedded", lambda name: tmp_path / "joe.onnx")
    monkeypatch.setattr(voices.sys, "executable", str(tmp_path / "python"))

    def install(script):
        program.write_text(f"#!{os.path.realpath('/proc/self/exe')}\n{script}")
        program.chmod(0o755)
        return load_voice("piper-joe")

    return install


def test_piper_is_run_as_a_program(piper):
    voice = piper(
        "import sys, wave\n"
        "a = sys.argv\n"
        "assert a[a.index('--length-scale') + 1] == '0.5' and sys.stdin.read() == 'Hello there.'\n"
        "w = wave.open(a[a.index('-f') + 1], 'wb')\n"
        "w.setnchannels(1); w.setsampwidth(2); w.setframerate(22050); w.writeframes(b'\\1\\0' * 22050); w.close()\n"
    )
    utterance = voice.speak("Hello\nthere.", speed=2.0)
    assert abs(len(utterance.waveform) - 16000) < 5
    assert utterance.words is None
    with pytest.raises(NothingToSayError):
        voice.speak("--")


def test_piper_that_fails_gives_its_last_line(piper):
    with pytest.raises(UserError, match=r"piper-joe: .* failed \(no voice\)"):
        piper("import sys\nsys.exit('no voice')").speak("Hello")


def test_piper_that_is_missing_is_told_how_to_install(piper, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="pip install piper-tts"):
        load_voice("piper-joe")
