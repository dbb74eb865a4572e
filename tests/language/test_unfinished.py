"""Segments that outlive a stop."""

from __future__ import annotations

import pytest

from sparq.language.listening import Segment
from sparq.language.unfinished import Unfinished
from sparq.speech.voice import Word

ONE = Segment(0.1 + 0.2, 2.5, "what time\u2028is it", 0.5, (Word("what", 0.3, 1 / 3),))
TWO = Segment(2.5, 4.0, "the sea", 1 / 7)


@pytest.fixture
def kept(tmp_path):
    def make(key="key"):
        return Unfinished(tmp_path / "out" / "a.srt", key)

    return make


def partial(tmp_path):
    return tmp_path / "out" / ".a.srt.partial"


def test_nothing_is_written_before_there_is_something(kept, tmp_path):
    assert (kept().segments, kept().until) == ([], 0.0)
    assert not list(tmp_path.iterdir())


def test_segments_come_back_as_they_were(kept):
    first = kept()
    first.add(ONE)
    assert kept().segments == [ONE]
    first.add(TWO)
    second = kept()
    assert second.segments == [ONE, TWO]
    assert second.until == 4.0
    second.add(ONE)
    assert kept().segments == [ONE, TWO, ONE]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_half_a_line_is_left_out_and_does_not_spoil_the_next(kept, tmp_path, cut):
    first = kept()
    first.add(ONE)
    first.add(TWO)
    path = partial(tmp_path)
    path.write_bytes(path.read_bytes()[: -cut - 1])
    second = kept()
    assert second.segments == [ONE]
    second.add(TWO)
    assert kept().segments == [ONE, TWO]


def test_other_settings_begin_anew(kept):
    kept().add(ONE)
    other = kept("other")
    assert other.segments == []
    other.add(TWO)
    assert kept("other").segments == [TWO]
    assert kept().segments == []


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"key\nnull\n", b'key\n{"start": 1}\n'])
def test_damage_is_no_reason_to_give_up(kept, tmp_path, damage):
    kept().add(ONE)
    partial(tmp_path).write_bytes(damage)
    assert kept().segments == []


def test_it_is_forgotten_when_the_transcript_is_there(kept, tmp_path):
    first = kept()
    first.add(ONE)
    first.forget()
    kept().forget()
    assert not list((tmp_path / "out").iterdir())
