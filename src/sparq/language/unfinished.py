"""What is heard of a recording, kept until its transcript is written, so that an hour's work outlives a stop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import IO

from sparq.language.listening import Segment
from sparq.speech.voice import Word


class Unfinished:
    """The segments of a recording so far, one a line, in a hidden file beside the transcript that is to be.

    Attributes:
        segments: those of a run before this one, if it was given the same key; others are not gone on with.
    """

    def __init__(self, transcript: Path, key: str) -> None:
        """Find what there is.

        Args:
            transcript: the file that is to be.
            key: a hash of all that decides which segments come out.
        """
        self._file: IO[str] | None = None
        self._path = transcript.with_name(f".{transcript.name}.partial")
        self._key = key
        self.segments = self._read()

    def _read(self) -> list[Segment]:
        try:
            key, *lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return []
        found = []
        for line in lines if key == self._key else []:
            try:
                told = json.loads(line)
                found.append(Segment(**{**told, "words": tuple(Word(**word) for word in told["words"])}))
            except (ValueError, TypeError, KeyError):  # the line at which a run was killed
                break
        return found

    @property
    def until(self) -> float:
        """Seconds of the recording up to which it was heard."""
        return self.segments[-1].end if self.segments else 0.0

    def add(self, segment: Segment) -> None:
        """Keep a segment."""
        if self._file is None:
            # Anew, because a run that was killed may have left half a line.
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
            self._file.write("".join(f"{line}\n" for line in [self._key, *map(_line, self.segments)]))
        self.segments.append(segment)
        self._file.write(f"{_line(segment)}\n")
        self._file.flush()

    def forget(self) -> None:
        """Remove the file: the transcript is there."""
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)


def _line(segment: Segment) -> str:
    return json.dumps(dataclasses.asdict(segment))
