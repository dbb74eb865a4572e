"""What a reader gives: one utterance of a corpus, where it was listed, and how lists and audio files are found."""

from __future__ import annotations

import dataclasses
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from sparq.errors import UserError
from sparq.speech.audio import SUFFIXES
from sparq.speech.foreign_audio import FOREIGN_SUFFIXES, is_foreign


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """One utterance of a corpus.

    Attributes:
        id: unique in its corpus.
        audio: the file, or None where there is text alone.
        text: the transcript, as written, or None where there is speech alone.
        speaker: a name, where the layout tells one.
        start: where in the file it begins, in seconds.
        seconds: how long it is; None to the end of the file.
        channel: which channel of the file it is in; None for the mean of all.
    """

    id: str
    audio: Path | None
    text: str | None
    speaker: str | None = None
    start: float = 0.0
    seconds: float | None = None
    channel: int | None = None


Found = Iterator[tuple[Recording, str]]
"""What reads a layout gives: recordings, each with the file and line it is from."""


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line of a text file, gzipped or not, that is not blank, and "file, line n".

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8-sig") as file
        ):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield line.strip("\r\n"), f"{path}, line {number}"
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:  # a gzip file that ends early, and one that is damaged inside
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def audio_named(stem: Path) -> Path:
    """Return the audio file of a path without suffix, in whichever format it is there; else the wav it should be."""
    # Appended, not replaced: an id may hold a full stop.
    candidates = [stem.with_name(stem.name + suffix) for suffix in (*SUFFIXES, *FOREIGN_SUFFIXES)]
    return next((file for file in candidates if file.is_file()), candidates[0])


def files_below(path: Path) -> Iterator[Path]:
    """Walk through the files anywhere below a folder, behind symbolic links too, without hidden files and folders."""
    entered: set[str] = set()
    for folder, inside, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:  # a link back to a folder above it would never end
            inside.clear()
            continue
        entered.add(real)
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def audio_below(path: Path) -> list[Path]:
    """List the audio files anywhere below a folder, in the order of their names, without hidden ones.

    A video beside a recording of its name is taken for the same.
    """
    found = [file for file in files_below(path) if is_audio(file)]
    heard = {file.with_suffix("") for file in found if not is_foreign(file)}
    return sorted(file for file in found if not (is_foreign(file) and file.with_suffix("") in heard))


def is_audio(file: Path) -> bool:
    """Whether a name is that of an audio file; files that macOS hides beside others (``._name``) are none."""
    return (file.suffix.lower() in SUFFIXES or is_foreign(file)) and not file.name.startswith(".")
