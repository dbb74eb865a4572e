"""Transcripts as files, read back by parsers that others wrote."""

from __future__ import annotations

import datetime as dt
import io
import json

import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.language.listening import Segment
from sparq.language.transcript import entry, written
from sparq.speech.voice import Word

SAID = [
    Segment(0.5, 2.25, "what time is it", 0.9),
    Segment(3599.9996, 3661.0, "a < b & c > d", 0.25),
    Segment(366000.0, 366001.5, "the sea", 1.0),
]


def whole(form, segments=SAID):
    return "".join(written(form, segments, "a.wav", 366002.0))


def test_text_has_a_line_for_each_segment():
    assert whole("text") == "what time is it\na < b & c > d\nthe sea\n"


def test_subrip_to_the_letter():
    assert whole("srt") == (
        "1\n00:00:00,500 --> 00:00:02,250\nwhat time is it\n\n"
        "2\n01:00:00,000 --> 01:01:01,000\na < b & c > d\n\n"
        "3\n101:40:00,000 --> 101:40:01,500\nthe sea\n\n"
    )


def test_webvtt_to_the_letter():
    assert whole("vtt") == (
        "WEBVTT\n\n"
        "00:00:00.500 --> 00:00:02.250\nwhat time is it\n\n"
        "01:00:00.000 --> 01:01:01.000\na &lt; b &amp; c &gt; d\n\n"
        "101:40:00.000 --> 101:40:01.500\nthe sea\n\n"
    )


def test_json_tells_all():
    told = json.loads(whole("json"))
    assert told == entry(SAID, "a.wav", 366002.0)
    assert (told["file"], told["seconds"]) == ("a.wav", 366002.0)
    assert told["text"] == "what time is it a < b & c > d the sea"
    assert told["segments"][1] == {"start": 3600.0, "end": 3661.0, "text": "a < b & c > d", "confidence": 0.25}


segments = st.lists(
    st.tuples(
        st.floats(0.01, 500),
        st.floats(0.01, 20),
        st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=15)
@given(segments)
def test_other_parsers_read_them(parts):
    said, now = [], 0.0
    for gap, lasts, text in parts:
        said.append(Segment(now + gap, now + gap + lasts, text, 0.5))
        now += gap + lasts
    cues = list(srt.parse(whole("srt", said)))
    assert [cue.content for cue in cues] == [one.text for one in said]
    assert [cue.index for cue in cues] == list(range(1, len(said) + 1))
    captions = webvtt.from_buffer(io.StringIO(whole("vtt", said))).captions
    assert len(captions) == len(said)
    for cue, caption, one in zip(cues, captions, said, strict=True):
        for time, seconds in ((cue.start, caption.start_in_seconds), (cue.end, caption.end_in_seconds)):
            assert time == pytest.approx(
                dt.timedelta(seconds=one.start if time == cue.start else one.end), abs=dt.timedelta(milliseconds=1)
            )
            assert abs(time.total_seconds() - seconds) <= 1


def test_segments_whose_words_have_times_are_cut_into_equal_subtitles():
    said = "it was the best of times it was the worst of times it was the age of wisdom it was the age of foolishness"
    words = tuple(Word(word, 2.0 + 0.25 * i, 2.25 + 0.25 * i) for i, word in enumerate(said.split()))
    segment = Segment(1.8, 9.0, said, 0.5, words)
    cues = list(srt.parse(whole("srt", [segment])))
    assert [cue.content for cue in cues] == [
        "it was the best of times it was the worst of times it", "was the age of wisdom it was the age of foolishness",
    ]  # fmt: skip
    assert [cue.start.total_seconds() for cue in cues] == [1.8, 5.25]
    assert [cue.end.total_seconds() for cue in cues] == [5.25, 9.0]
    assert whole("text", [segment]) == f"{said}\n"
    (told,) = json.loads(whole("json", [segment]))["segments"]
    assert told["words"][1] == {"start": 2.25, "end": 2.5, "text": "was"}
    assert len(told["words"]) == len(words)


def test_a_line_break_does_not_end_a_subtitle():
    (cue,) = srt.parse(whole("srt", [Segment(0, 1, "one\n\ntwo\u2028three", 1)]))
    assert cue.content == "one two three"


@pytest.mark.parametrize("form", ["text", "srt", "vtt"])
def test_parts_come_as_segments_do(form):
    asked = []
    parts = written(form, (asked.append(one) or one for one in SAID), "a.wav", 1.0)
    heading = [next(parts)] if form == "vtt" else []
    assert heading == (["WEBVTT\n\n"] if form == "vtt" else [])
    for count in (1, 2, 3):
        next(parts)
        assert len(asked) == count


@pytest.mark.parametrize(("form", "empty"), [("text", ""), ("srt", ""), ("vtt", "WEBVTT\n\n")])
def test_who_says_nothing_has_a_file_too(form, empty):
    assert whole(form, []) == empty
    assert json.loads(whole("json", []))["segments"] == []
