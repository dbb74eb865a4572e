"""Transcripts as files: plain text, subtitles (SubRip and WebVTT) and JSON, written as the segments come."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterable, Iterator
from typing import Any

from sparq.language.listening import Segment

FORMATS = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".json"}
"""Formats, and the suffixes of their files."""


def written(form: str, segments: Iterable[Segment], name: str, seconds: float) -> Iterator[str]:
    """Write a transcript in parts; joined they are the file.

    Args:
        form: "text" (a line for each segment), "srt", "vtt" or "json" (see `entry`; one part, at the end).
        segments: in their order.
        name: of the recording.
        seconds: that the recording lasts.
    """
    if form == "json":
        yield json.dumps(entry(segments, name, seconds), indent=1, ensure_ascii=False) + "\n"
        return
    if form == "vtt":
        yield "WEBVTT\n\n"
    for number, segment in enumerate(segments, 1):
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
    rows = [
        dataclasses.asdict(one)
        | {"start": round(one.start, 3), "end": round(one.end, 3), "confidence": round(one.confidence, 4)}
        for one in told
    ]
    return {
        "file": name,
        "seconds": round(seconds, 3),
        "text": " ".join(one.text for one in told),
        "segments": rows,
    }


def _clock(seconds: float, point: str) -> str:
    """Write a time as hours, minutes, seconds and thousandths: 00:01:02,345."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
