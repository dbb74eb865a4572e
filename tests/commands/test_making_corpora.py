"""``sparq corpus`` and ``sparq units``."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import soundfile

from sparq.speech.audio import load_audio


def test_units(sparq, tiny_run, corpus, tmp_path):
    code, out, _ = sparq("units", tiny_run.audio)
    raw = [int(unit) for unit in out.split()]
    assert code == 0
    assert len(raw) == pytest.approx(load_audio(tiny_run.audio).size / 384, abs=2)
    assert sparq("units", "-", stdin=tiny_run.audio.read_bytes())[1] == out
    assert sparq("units", tiny_run.audio, "--codebook", corpus / "codebook")[1] == out  # the shipped one was used
    _, out, _ = sparq("units", "--merged", "--json", tiny_run.audio)
    merged = [unit for index, unit in enumerate(raw) if index == 0 or raw[index - 1] != unit]
    assert json.loads(out) == [{"file": str(tiny_run.audio), "units": merged}]
    soundfile.write(tmp_path / "click.wav", np.ones(20), 16000)
    code, out, err = sparq("units", tiny_run.audio, tmp_path / "click.wav")
    assert (code, out) == (2, "")
    assert err == f"sparq: {tmp_path / 'click.wav'}: too short to have units\n"


def test_corpus_of_recordings(sparq, tiny_run, tmp_path):
    (tmp_path / "said").mkdir()
    for name in ("one", "two"):
        shutil.copy(tiny_run.audio, tmp_path / "said" / f"{name}.wav")
        (tmp_path / "said" / f"{name}.txt").write_text(f"come back soon {name}")
    asked = ("corpus", "said", "-o", "made", "--codebook", "codebook", "--processes", 1, "--held-out", 1)
    code, out, _ = sparq(*asked, "--json")
    assert code == 0
    assert {name: json.loads(out)[name] for name in ("train", "held_out", "skipped")} == {
        "train": 1, "held_out": 1, "skipped": [],
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "said"]
    code, out, _ = sparq(*asked)  # complete
    assert code == 0
    assert out.startswith("made: 2 utterances (1 to train on, 1 held out)")
    more = [*asked, "--limit", 1, "--held-out", 0]
    told = "sparq: made: was made with other settings or inputs; overwrite it, or choose another name\n"
    assert sparq(*more) == (2, "", told)
    code, out, _ = sparq(*more, "--overwrite")
    assert (code, out.startswith("made: 1 utterances (1 to train on, 0 held out)")) == (0, True)


def test_texts_read_in_imagination(sparq, tiny_run, corpus, tmp_path):
    """By the readers of a corpus, in its units, unless a codebook is named."""
    (tmp_path / "more.txt").write_text("Come back soon.\n")
    code, _, err = sparq("corpus", "more.txt", "--kind", "imagined", "--readers", "nowhere", "-o", "made")
    assert (code, "nowhere: not a SpARQ corpus folder" in err) == (2, True)
    asked = ("corpus", "more.txt", "--kind", "imagined", "--readers", corpus, "-o", "made", "--processes", 1)
    code, out, _ = sparq(*asked, "--json")
    assert (code, json.loads(out)["imagined"], json.loads(out)["skipped"]) == (0, 1, [])
