"""Manifests of Lhotse: written by hand, and by Lhotse itself where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sparq.corpus.readers import find_layout, read_corpus
from sparq.corpus.recording import Recording
from sparq.errors import UserError
from sparq.speech.audio import load_audio


def recording(name: str, source: str, channels=(0,), seconds=4.0, **more):
    sources = [{"type": "file", "channels": list(channels), "source": source}]
    return {"id": name, "sources": sources, "sampling_rate": 16000, "num_samples": int(seconds * 16000),
            "duration": seconds, "channel_ids": list(channels), **more}  # fmt: skip


def supervision(name: str, of: str, start=0.0, duration=4.0, **more):
    return {"id": name, "recording_id": of, "start": start, "duration": duration, "channel": 0, **more}


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "a.wav").touch()
    (tmp_path / "calls.sph").touch()
    write(tmp_path / "x_recordings_dev.jsonl", [recording("a", str(tmp_path / "a.wav")),
                                                recording("c", "calls.sph", (0, 1))])  # fmt: skip
    write(tmp_path / "x_supervisions_dev.jsonl", [
        supervision("a-1", "a", text=" hi you ", speaker="joe"),
        supervision("c-1", "c", 0.5, 1.25, text="left"),
        supervision("c-2", "c", 2, 1, channel=1, text="right", speaker=7),
        supervision("c-3", "c", 3, 1, channel=[0, 1], text="both"),
    ])  # fmt: skip
    return tmp_path


def test_supervisions(folder):
    assert find_layout(folder) == find_layout(folder / "x_supervisions_dev.jsonl") == "lhotse"
    expected = [
        Recording("a-1", folder / "a.wav", "hi you", "joe"),
        Recording("c-1", folder / "calls.sph", "left", None, 0.5, 1.25, 0),
        Recording("c-2", folder / "calls.sph", "right", "7", 2.0, 1.0, 1),
        Recording("c-3", folder / "calls.sph", "both", None, 3.0, 1.0, None),
    ]
    assert list(read_corpus(folder)) == expected
    assert list(read_corpus(folder / "x_supervisions_dev.jsonl")) == expected
    assert list(read_corpus(folder, "lhotse", ["dev"])) == list(read_corpus(folder, parts=["dev"])) == expected
    with pytest.raises(UserError, match=r"there is no part 'deb' in it .did you mean dev"):
        list(read_corpus(folder, "lhotse", ["deb"]))


def test_cuts(tmp_path):
    (tmp_path / "a.wav").touch()
    cut = {"id": "cut", "start": 1.0, "duration": 2.0, "channel": 0, "recording": recording("a", "a.wav")}
    spoken = [supervision("one", "a", 0.25, 0.5, text="hi"), supervision("two", "a", 1.0, 1.0, text="you", speaker="s")]
    cuts = write(tmp_path / "cuts.jsonl", [{**cut, "supervisions": spoken, "type": "MonoCut"}])
    assert find_layout(cuts) == "lhotse"
    assert list(read_corpus(cuts)) == list(read_corpus(tmp_path)) == [
        Recording("one", tmp_path / "a.wav", "hi", None, 1.25, 0.5), Recording("two", tmp_path / "a.wav", "you", "s", 2.0, 1.0),
    ]  # fmt: skip
    write(cuts, [{**cut, "supervisions": [], "type": "MonoCut"}])
    assert list(read_corpus(cuts, text=False)) == [Recording("cut", tmp_path / "a.wav", None, None, 1.0, 2.0)]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("cuts.jsonl", {"id": "m", "type": "MixedCut", "tracks": []}, r"cuts\.jsonl, line 1: m is a MixedCut"),
        ("cuts.jsonl", {"id": "m", "start": 0}, r"line 1: not a cut of Lhotse .KeyError"),
        ("a_supervisions.jsonl", supervision("s", "elsewhere"), r"line 1: recording elsewhere is not in a_recordings"),
        ("a_supervisions.jsonl", {"recording_id": "a"}, r"line 1: not a supervision of Lhotse .KeyError"),
        ("a_supervisions.jsonl", supervision("s", "a", start="0"), r"line 1: not a supervision of Lhotse .TypeError"),
        ("a_supervisions.jsonl", supervision("s", "a", channel=1), r"line 1: channel 1 of recording a is not in one file"),
        ("a_supervisions.jsonl", supervision("s", "url"), r"line 1: channel 0 of recording url .*but in: url"),
        ("a_supervisions.jsonl", supervision("s", "fast"), r"line 1: recording fast is to be transformed"),
        ("b_supervisions.jsonl", supervision("s", "a"), r"b_recordings\.jsonl: cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, name, row, message):
    url = recording("url", "https://x/a.wav")
    url["sources"][0]["type"] = "url"
    fast = recording("fast", "a.wav", transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}])
    write(tmp_path / "a_recordings.jsonl", [recording("a", "a.wav"), url, fast])
    with pytest.raises(UserError, match=message) as caught:
        list(read_corpus(write(tmp_path / name, [row])))
    assert "\n" not in str(caught.value)


def test_segments_and_channels_are_what_lhotse_loads(tmp_path):
    lhotse = pytest.importorskip("lhotse")
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "two.flac", random.uniform(-0.5, 0.5, (5 * 16000, 2)), 16000)
    whole = lhotse.Recording.from_file(tmp_path / "two.flac")
    spoken = [
        lhotse.SupervisionSegment("l", whole.id, 0.5, 1.2, channel=0, text="left", speaker="A"),
        lhotse.SupervisionSegment("r", whole.id, 2.25, 2.0, channel=1, text="right", speaker="B"),
    ]
    lhotse.RecordingSet.from_recordings([whole]).to_file(tmp_path / "d_recordings_all.jsonl.gz")
    lhotse.SupervisionSet.from_segments(spoken).to_file(tmp_path / "d_supervisions_all.jsonl.gz")
    for one, segment in zip(read_corpus(tmp_path), spoken, strict=True):
        assert (one.id, one.text, one.speaker) == (segment.id, segment.text, segment.speaker)
        theirs = whole.load_audio(channels=segment.channel, offset=segment.start, duration=segment.duration)[0]
        ours = load_audio(one.audio, start=one.start, seconds=one.seconds, channel=one.channel)
        np.testing.assert_array_equal(ours, theirs)
    cuts = lhotse.CutSet.from_manifests(
        lhotse.RecordingSet.from_recordings([whole]), lhotse.SupervisionSet.from_segments(spoken)
    ).trim_to_supervisions(keep_all_channels=False)
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    assert list(read_corpus(tmp_path / "cuts.jsonl.gz")) == list(read_corpus(tmp_path))


@pytest.mark.parametrize("recipe", ["tedlium", "aishell"])
def test_recipes_are_given_the_folder_whatever_they_call_it(tmp_path, monkeypatch, recipe):
    """Some of Lhotse's call it ``corpus_dir``, some otherwise; those that need more than a folder say so."""
    pytest.importorskip("lhotse")
    monkeypatch.setenv("SPARQ_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"empty: Lhotse's recipe {recipe} (cannot read it|found nothing)") as caught:
        list(read_corpus(tmp_path / "empty", f"lhotse:{recipe}"))
    assert "TypeError" not in str(caught.value)
    with pytest.raises(UserError, match="lhotse:heroico: Lhotse's recipe asks for transcript_dir too; use Lhotse"):
        list(read_corpus(tmp_path / "empty", "lhotse:heroico"))
    assert not list((tmp_path / "cache" / "lhotse").glob("*"))
