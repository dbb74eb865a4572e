"""``sparq transcribe``: files, folders and standard input to text, subtitles and JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sparq.language.speech_lm import SpeechLM
from sparq.speech.audio import RATE, load_audio, save_audio

CUE = "00:00:0"


@pytest.fixture(scope="module")
def listener(quick):
    """The tiny model; held to few pieces, it hears at most 0.55 s at once."""
    return SpeechLM.load(quick)


@pytest.fixture
def transcribe(sparq, listener, monkeypatch):
    """``sparq transcribe`` with a model that is loaded once for all."""
    monkeypatch.setattr("sparq.load", lambda folder, **_: listener)
    return lambda *arguments, **more: sparq("transcribe", *arguments, "--beam", 1, **more)


@pytest.fixture
def talks(tiny_run, tmp_path):
    """A folder with two recordings, one of them deeper, and other files."""
    folder = tmp_path / "talks"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(tiny_run.audio, folder / "one.wav")
    save_audio(folder / "deep" / "two.flac", load_audio(tiny_run.audio))
    (folder / "notes.txt").write_text("years of work")
    (folder / "._one.wav").write_bytes(b"what another system leaves")
    return folder


def test_one_recording_is_told_by_segments_as_they_come(transcribe, tiny_run):
    code, out, err = transcribe(tiny_run.audio)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) > 1
    told = json.loads(transcribe(tiny_run.audio, "--json")[1])
    assert [list(one) for one in told] == [["file", "seconds", "text", "segments"]]
    assert [one["text"] for one in told[0]["segments"]] == lines
    assert told[0]["text"] == " ".join(lines)
    assert told[0]["seconds"] == pytest.approx(load_audio(tiny_run.audio).size / RATE, abs=1e-3)
    times = [time for one in told[0]["segments"] for time in (one["start"], one["end"])]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= told[0]["seconds"]
    assert all(0 <= one["confidence"] <= 1 for one in told[0]["segments"])
    code, subtitles, err = transcribe(tiny_run.audio, "--format", "srt")
    assert (code, err) == (0, "")
    assert [block.splitlines()[2] for block in subtitles.strip().split("\n\n")] == lines


def test_what_is_written_down_is_printed_before_the_rest_is_heard(transcribe, tiny_run, monkeypatch):
    events = []
    write_down = SpeechLM.write_down

    def heard(self, units, options=None, **others):
        events.append(len(units))
        return write_down(self, units, options, **others)

    monkeypatch.setattr(SpeechLM, "write_down", heard)
    monkeypatch.setattr("builtins.print", lambda *text, **_: events.append(text[0]))
    transcribe(tiny_run.audio)
    assert events[0] == 1
    assert isinstance(events[1], str)
    assert events[2] > 1


def test_standard_input(transcribe, tiny_run):
    _, expected, _ = transcribe(tiny_run.audio)
    data = tiny_run.audio.read_bytes()
    assert transcribe("-", stdin=data)[:2] == (0, expected)
    assert json.loads(transcribe("-", "--json", stdin=data)[1])[0]["file"] == "standard input"
    code, out, err = transcribe("-", stdin=data[44:])
    assert (code, out) == (2, "")
    assert err.endswith("(no header says what it holds; raw samples must be given one, as in a .wav file)\n")
    assert err.count("\n") == 1
    assert transcribe("-", "-o", "out", stdin=data)[0] == 0


def test_a_folder_is_mirrored(transcribe, talks, tmp_path):
    code, out, err = transcribe("talks", "-o", "out", "--format", "vtt")
    assert (code, err) == (0, "")
    files = sorted(path.relative_to(tmp_path) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert list(map(str, files)) == ["out/deep/two.vtt", "out/one.vtt"]
    assert [line.partition(":")[0] for line in out.splitlines()] == list(map(str, files))
    subtitles = [(tmp_path / path).read_text() for path in files]
    assert subtitles[0] == subtitles[1]
    assert subtitles[0].startswith(f"WEBVTT\n\n{CUE}")
    assert subtitles[0] == transcribe(talks / "one.wav", "--format", "vtt")[1]
    _, out, _ = transcribe("talks")
    assert [line.partition("\t")[0] for line in out.splitlines()] == ["talks/deep/two.flac", "talks/one.wav"]


def test_what_is_there_is_left_alone(transcribe, talks, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one.txt").write_text("corrected by hand")
    code, out, err = transcribe("talks", "-o", "out")
    assert (code, err) == (0, "1 there already (--overwrite makes them anew)\n")
    assert out.startswith("out/deep/two.txt: ")
    assert (tmp_path / "out" / "one.txt").read_text() == "corrected by hand"
    with monkeypatch.context() as patch:
        patch.setattr("sparq.load", None)  # not even the model is loaded
        assert transcribe("talks", "-o", "out") == (0, "", "2 there already (--overwrite makes them anew)\n")
    assert transcribe("talks", "-o", "out", "--overwrite")[0] == 0
    assert (tmp_path / "out" / "one.txt").read_text() == (tmp_path / "out" / "deep" / "two.txt").read_text()


def test_what_is_done_stays_when_it_is_stopped(transcribe, talks, tmp_path, monkeypatch):
    def stopped(name):
        if "one" in str(name):
            raise KeyboardInterrupt
        return load_audio(name)

    with monkeypatch.context() as patch:
        patch.setattr("sparq.speech.audio.load_audio", stopped)
        patch.setattr("sparq.language.listening._READ_AHEAD", 1)
        code, _, err = transcribe("talks", "-o", "out", "--batch", 1)
    assert code == 130
    assert err == "sparq: stopped; the same command goes on from here\n"
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["two.txt"]
    code, out, _ = transcribe("talks", "-o", "out")
    assert (code, out.partition(":")[0]) == (0, "out/one.txt")


def test_a_long_recording_goes_on_where_it_was_stopped(transcribe, tiny_run, tmp_path, monkeypatch):
    _, whole, _ = transcribe(tiny_run.audio, "--json")
    asked = []
    write_down = SpeechLM.write_down

    def heard(self, units, options=None, **others):
        asked.append(len(units))
        if sum(asked) == 3:
            raise KeyboardInterrupt
        return write_down(self, units, options, **others)

    monkeypatch.setattr(SpeechLM, "write_down", heard)
    assert transcribe(tiny_run.audio, "-o", "a.json")[0] == 130
    assert [path.name for path in tmp_path.iterdir()] == [".a.json.partial"]
    count = len(json.loads(whole)[0]["segments"])
    assert transcribe(tiny_run.audio, "-o", "a.json")[0] == 0
    assert sum(asked) == 3 + count - 1  # the first was kept
    assert json.loads((tmp_path / "a.json").read_text())["segments"] == json.loads(whole)[0]["segments"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_broken_recording_does_not_stop_the_others(transcribe, talks, tmp_path):
    (talks / "deep" / "broken.wav").write_text("not audio at all")
    code, out, err = transcribe("talks", "nowhere.mp3", "-o", "out")
    assert code == 1
    assert [line.partition(":")[0] for line in out.splitlines()] == ["out/deep/two.txt", "out/one.txt"]
    assert [line.partition(" (")[0] for line in err.splitlines()] == [
        "sparq: talks/deep/broken.wav: not audio, or damaged", "sparq: nowhere.mp3: no such file",
        "sparq: 2 of 4 recordings could not be read",
    ]  # fmt: skip
    code, out, err = transcribe("talks", "--json")
    assert code == 1
    assert [one["file"] for one in json.loads(out)] == ["talks/deep/two.flac", "talks/one.wav"]


def test_the_suffix_says_the_format(transcribe, tiny_run, tmp_path):
    for name in ("a.srt", "a.json", "a.txt"):
        assert transcribe(tiny_run.audio, "-o", name)[0] == 0
    assert (tmp_path / "a.srt").read_text().startswith(f"1\n{CUE}")
    told = json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.txt").read_text().split() == told["text"].split()
    transcribe(tiny_run.audio, "-o", "sub", "--json")
    assert json.loads((tmp_path / "sub" / "said.json").read_text()) == told


def test_recordings_of_one_name_keep_their_suffixes(transcribe, talks, tmp_path):
    save_audio(talks / "one.flac", load_audio(talks / "one.wav"))
    assert transcribe("talks", "-o", "out")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deep", "one.flac.txt", "one.wav.txt"]


def test_what_needs_ffmpeg_is_passed_over_without_it(transcribe, talks, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    (talks / "three.m4a").write_bytes(b"")
    (talks / "one.mp4").write_bytes(b"")  # a video, whose sound lies beside it
    code, _, err = transcribe("talks", "-o", "out")
    assert code == 0
    assert err == (
        "sparq: talks: 1 of 3 recordings need ffmpeg, which is not there (or convert them to .wav or .flac); "
        "they are passed over\n"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deep", "one.txt"]
    for path in ("one.wav", "deep/two.flac"):
        (talks / path).unlink()
    code, _, err = transcribe("talks", "-o", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "talks: 2 of 2 recordings need ffmpeg" in err


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_video_is_heard(transcribe, talks, tmp_path):
    command = ["ffmpeg", "-v", "error", "-i", talks / "one.wav", "-c:a", "flac", talks / "three.mkv"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    assert transcribe("talks", "-o", "out")[0] == 0
    assert (tmp_path / "out" / "three.txt").read_text() == (tmp_path / "out" / "one.txt").read_text()


def test_words_have_times_if_asked_for(transcribe, tiny_run, listener, monkeypatch):
    monkeypatch.setattr(listener, "write_down", lambda units, *_, **__: ["come back"] * len(units))
    (told,) = json.loads(transcribe(tiny_run.audio, "--json", "--words")[1])
    timed = [one for one in told["segments"] if "words" in one]
    assert timed
    for one in timed:
        assert " ".join(word["text"] for word in one["words"]) == one["text"]
        assert one["words"][0]["start"] == one["start"]
        assert one["words"][-1]["end"] <= one["end"] + 1e-3


def test_music_can_be_taken_for_speech(transcribe, tmp_path):
    time = np.arange(RATE) / RATE
    save_audio(tmp_path / "chord.wav", 0.1 * sum(np.sin(2 * np.pi * pitch * time) for pitch in (262, 330, 392)))
    assert transcribe("chord.wav")[:2] == (0, "")
    assert transcribe("chord.wav", "--detector", "loudness")[1]


WRONG = {
    "no such detector": ("talks/one.wav --detector webrtc", "webrtc: no such detector"),
    "no such format": ("talks/one.wav --format doc", "--format"),
    "two formats": ("talks/one.wav --format srt --json", "--format: srt"),
    "a format that is not the file's": ("talks/one.wav -o a.srt --format vtt", "--format: vtt (does not fit a.srt)"),
    "JSON in a file of subtitles": ("talks/one.wav -o a.srt --json", "--json (does not fit a.srt)"),
    "a file that cannot be made": ("talks/one.wav -o /proc/a.srt", "/proc/a.srt: cannot be written"),
    "a folder that cannot be made": ("talks/one.wav -o /proc/out", "/proc/out/one.txt: cannot be written"),
    "no batch": ("talks/one.wav --batch 0", "--batch"),
    "subtitles of several on standard output": ("talks --format srt", "-o: missing"),
    "one file for several": ("talks -o all.srt", "-o: all.srt (expected a folder for the transcripts of 2 recordings)"),
    "a file as a folder": ("talks -o talks/notes", "talks/notes: is in the way"),
    "a missing folder": ("talks/one.wav -o nowhere/a.srt", "there is no folder nowhere"),
    "a folder without recordings": ("empty", "empty: holds no recordings"),
    "one name for two": ("talks talks/deep/../one.wav -o out", "one.wav: out/one.wav.txt is already for talks/one.wav"),
    "a missing file": ("nowhere.wav -o out", "nowhere.wav: no such file"),
    "a folder in a file": ("talks/one.wav -o talks/notes/deeper/", "talks/notes: is in the way"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_exit_code_2_and_nothing_left(transcribe, talks, tmp_path, case):
    line, told = WRONG[case]
    (talks / "notes").write_text("in the way")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = transcribe(*line.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert told in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", ["nowhere/a.srt", "/proc/a.srt", "talks/notes/a.srt"])
def test_where_it_cannot_be_written_is_said_before_anything_is_loaded(talks, tmp_path, output):
    (talks / "notes").write_text("in the way")
    code = (
        "import sys; from sparq import cli\n"
        f"ended = cli.main(['transcribe', 'talks/one.wav', '-o', {output!r}]), 'torch' in sys.modules\n"
        "sys.exit(0 if ended == (2, False) else str(ended))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert output in done.stderr


def test_a_recording_that_is_named_twice_is_heard_once(transcribe, talks, tmp_path):
    _, out, _ = transcribe("talks", "talks/one.wav", "talks/one.wav", "--json")
    names = [one["file"] for one in json.loads(out)]
    assert len(names) == len(set(names))
    assert "talks/one.wav" in names


def test_a_name_that_is_no_utf8_does_not_stop_the_others(transcribe, talks, tmp_path):
    odd = os.fsdecode(b"talks/caf\xe9.wav")
    shutil.copy(tmp_path / "talks" / "one.wav", tmp_path / odd)
    code, _, err = transcribe("talks", "-o", "out")
    assert code == 1
    assert "caf\\udce9.wav': its name is not UTF-8 (rename it)" in err
    assert (tmp_path / "out" / "one.txt").is_file()
