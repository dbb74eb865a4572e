"""``sparq speak``, ``continue`` and ``vocoder``."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from sparq.artifacts import read_manifest
from sparq.speech.audio import load_audio, save_audio


def test_speak_and_continue(sparq, tiny_run, quick, tmp_path):
    code, out, err = sparq("speak", "Who?", "-o", "out.wav", "--model", quick)
    assert (code, err) == (0, "")
    said = load_audio(tmp_path / "out.wav")
    assert out == f"out.wav: {said.size / 16_000:.1f} s\n"
    sparq("speak", "-", "-o", "piped.wav", "--model", quick, stdin=b"Who?\n")
    np.testing.assert_array_equal(load_audio(tmp_path / "piped.wav"), said)
    sparq("speak", "Who?", "-o", "once.wav", "--model", quick, "--beam", 1)
    said = load_audio(tmp_path / "once.wav")
    code, out, err = sparq("speak", "Who?", "-o", "streamed.wav", "--stream", "--model", quick)
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"streamed.wav: {said.size / 16_000:.1f} s, the first of it after \d+\.\d\d s\n", out)
    np.testing.assert_allclose(load_audio(tmp_path / "streamed.wav"), said, atol=1e-3)
    drawn = [sparq("continue", "who", "--model", quick, "--temperature", 2, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].startswith("who")
    assert sparq("continue", "-", "--model", quick, "--temperature", 2, "--seed", 1, stdin=b"who")[1] == drawn[0]


def test_continue_speech(sparq, tiny_run, lm, tmp_path):
    save_audio(tmp_path / "short.wav", load_audio(tiny_run.audio)[:8000])
    code, _, err = sparq("continue", "short.wav", "-o", "longer.ogg", "--model", lm, "--top-p", 0.5)
    assert (code, err) == (0, "")
    assert load_audio(tmp_path / "longer.ogg").size >= 7000


def test_what_is_no_file_or_a_folder_is_continued_as_text(sparq, quick, tmp_path):
    (tmp_path / "who").mkdir()
    assert sparq("continue", "who", "--model", quick)[1].startswith("who")
    too_long = "who " * 80  # for the name of a file, and for the model
    assert "too long to go on" in sparq("continue", too_long, "--model", quick)[2]


def test_vocoder(sparq, corpus, tmp_path, monkeypatch):
    from sparq import making

    few = dataclasses.replace(making.VocoderTraining.preset("small"), duration_steps=2)
    monkeypatch.setattr(making.VocoderTraining, "preset", lambda _, steps: dataclasses.replace(few, steps=steps))
    code, out, _ = sparq("vocoder", corpus, "-o", "voice", "steps=1", "batch=1")
    assert (code, out) == (0, "voice\n")
    assert read_manifest(tmp_path / "voice", "vocoder").kind == "vocoder"
    asked = ("vocoder", corpus, "-o", "voice", "steps=2", "batch=1")
    code, out, err = sparq(*asked)
    assert (code, out, "voice: was made with other settings or inputs; overwrite it" in err) == (2, "", True)
    assert sparq(*asked, "--overwrite")[:2] == (0, "voice\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["voice"]


def test_a_seed_alone_is_that_of_the_usual_sampling(sparq, quick):
    drawn = [sparq("continue", "who", "--model", quick, *more)[1] for more in ([], ["--seed", 0], ["--seed", 5])]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_no_text_on_standard_input_is_told(sparq, quick):
    for command in (("speak", "-", "-o", "out.wav"), ("continue", "-")):
        code, out, err = sparq(*command, "--model", quick, stdin=b"\xff who")
        assert (code, out, err) == (2, "", "sparq: standard input: byte 0 is not UTF-8 text\n")


@pytest.mark.parametrize("output", ["nowhere/out.wav", "out.xyz", "out.raw"])
@pytest.mark.parametrize("command", ["speak hello", "speak hello --stream", "continue beginning.wav"])
def test_where_it_cannot_be_written_is_said_before_anything_is_loaded(sparq, monkeypatch, tmp_path, output, command):
    save_audio(tmp_path / "beginning.wav", np.zeros(800, np.float32))
    monkeypatch.setattr("sparq.load", None)
    code, out, err = sparq(*command.split(), "-o", output)
    assert (code, out) == (2, "")
    assert output in err
