"""Transcripts as files: plain text, subtitles (SubRip and WebVTT) and JSON, written as the segments come."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the formats are known before anything is loaded
    from sparq.language.listening import Segment
    from sparq.speech.voice import Word

FORMATS = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".json"}
"""Formats, and the suffixes of their files."""

_READABLE = 84  # letters of a subtitle whose words have times: two lines of 42


def written(form: str, segments: Iterable[Segment], name: str, seconds: float) -> Iterator[str]:
    """Write a transcript in parts; joined they are the file.

    Args:
        form: "text" (a line for each segment), "srt" or "vtt" (a subtitle for each, or several of at most about 84
            letters where words have times), or "json" (see `entry`; one part, at the end).
        segments: in their order.
        name: of the recording.
        seconds: that the recording lasts.
    """
    if form == "json":
        yield json.dumps(entry(segments, name, seconds), indent=1, ensure_ascii=False) + "\n"
        return
    if form == "vtt":
        yield "WEBVTT\n\n"
    shown = segments if form == "text" else _subtitles(segments)
    for number, segment in enumerate(shown, 1):
        text = " ".join(segment.text.split())  # an empty line would end a subtitle
        if form == "text":
            yield f"{text}\n"
        elif form == "srt":
            yield f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{text}\n\n"
        else:
            text = html.escape(text, quote=False)
            yield f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{text}\n\n"


def entry(segments: Iterable[Segment], name: str, seconds: float) -> dict[str, Any]:
    """Give what JSON tells of a recording: "file", "seconds", "text", and "segments" as `Segment` has them."""
    told = list(segments)
    rows: list[dict[str, Any]] = []
    for one in told:
        rows.append(_timed(one) | {"confidence": round(one.confidence, 4)})
        if one.words:
            rows[-1]["words"] = [_timed(word) for word in one.words]
    text = " ".join(one.text for one in told)
    return {"file": name, "seconds": round(seconds, 3), "text": text, "segments": rows}


def _timed(said: Segment | Word) -> dict[str, Any]:
    return {"start": round(said.start, 3), "end": round(said.end, 3), "text": said.text}


def _subtitles(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Cut segments whose words have times into equal parts that can be read at once."""
    for segment in segments:
        if not segment.words:
            yield segment
            continue
        # Equal parts, rather than full subtitles and a rest of one word.
        begins = list(itertools.accumulate((len(word.text) + 1 for word in segment.words), initial=0))
        part = begins[-1] / -(-begins[-1] // _READABLE)
        places = [int(begin // part) for begin in begins[:-1]]
        start = segment.start
        for place, group in itertools.groupby(zip(places, segment.words, strict=True), key=lambda one: one[0]):
            words = tuple(word for _, word in group)
            end = segment.end if place == places[-1] else words[-1].end
            text = " ".join(word.text for word in words)
            yield dataclasses.replace(segment, start=start, end=end, text=text, words=words)
            start = end


def _clock(seconds: float, point: str) -> str:
    """Write a time as hours, minutes, seconds and thousandths: 00:01:02,345."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
