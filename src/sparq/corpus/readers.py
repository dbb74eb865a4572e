"""Readers: recordings and their transcripts, from the layouts that speech corpora come in.

========== =========================================================================================================
layout     what is looked for
========== =========================================================================================================
LJ Speech  ``metadata.csv`` with ``id|text`` or ``id|text|normalised text``; audio named by id in any folder beside it
LibriSpeech ``*.trans.txt`` (``id TEXT``) anywhere below, audio beside each; the speaker is the id's first number
CMU ARCTIC ``etc/txt.done.data`` with ``( id "text" )``, audio in ``wav/``
AN4        ``etc/*.fileids`` and ``etc/*.transcription`` (``<s> TEXT </s> (id)``), audio in ``wav/``
sidecars   a folder of audio with ``name.txt`` beside each ``name.wav``
JSONL      ``{"audio": path relative to the file, "text": ..., "id": ..., "speaker": ...}``; only text is required
TSV        ``id<TAB>sentence``, to be voiced
text       one sentence a line, to be voiced
========== =========================================================================================================
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sparq.errors import UserError

_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_ARCTIC = re.compile(r'\(\s*(\S+)\s+"(.*)"\s*\)')
_SPHINX = re.compile(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\((\S+)\)")


@dataclasses.dataclass(frozen=True)
class Recording:
    """One utterance of a corpus.

    Attributes:
        id: unique in its corpus.
        audio: the file, or None where a voice is to read the text.
        text: the transcript, as written.
        speaker: a name, where the layout tells one.
    """

    id: str
    audio: Path | None
    text: str
    speaker: str | None = None


def read_corpus(path: str | Path) -> Iterator[Recording]:
    """Read a corpus in any of the layouts above, one recording at a time, in the order of its lists.

    Raises:
        UserError: no such path, no known layout, nothing in it, a line that cannot be read, a text that is empty, an id
            that is there twice, or an audio file that is missing; the line names the file and the line number.
    """
    path = Path(path)
    reader = _find_reader(path)
    seen: set[str] = set()
    for recording, where in reader(path):
        if not recording.text:
            raise UserError(f"{where}: {recording.id} has no text")
        if recording.id in seen:
            raise UserError(f"{where}: {recording.id} is there twice")
        if recording.audio is not None and not recording.audio.is_file():
            raise UserError(f"{where}: there is no audio file {recording.audio}")
        seen.add(recording.id)
        yield recording
    if not seen:
        raise UserError(f"{path}: holds no recordings")


_Found = Iterator[tuple[Recording, str]]  # a recording, and the file and line it is from


def _find_reader(path: Path) -> Callable[[Path], _Found]:
    if path.is_file():
        return {".jsonl": _read_jsonl, ".tsv": _read_tsv}.get(path.suffix.lower(), _read_text)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    if (path / "metadata.csv").is_file():
        return _read_ljspeech
    if (path / "etc" / "txt.done.data").is_file():
        return _read_arctic
    if any((path / "etc").glob("*.fileids")):
        return _read_an4
    if any(path.rglob("*.trans.txt")):
        return _read_librispeech
    if any(file.suffix.lower() in _SUFFIXES for file in path.rglob("*")):
        return _read_sidecars
    raise UserError(f"{path}: no known corpus layout (metadata.csv, *.trans.txt, etc/, or audio with .txt beside it)")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, and "file, line n"."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield line.strip("\r\n"), f"{path}, line {number}"
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _with_suffix(stem: Path) -> Path:
    """Return the audio file of a path without suffix, in whichever format it is there; else the wav it should be."""
    # Appended, not replaced: an id may hold a full stop.
    candidates = [stem.with_name(stem.name + suffix) for suffix in _SUFFIXES]
    return next((file for file in candidates if file.is_file()), candidates[0])


def _read_ljspeech(path: Path) -> _Found:
    audio = {file.stem: file for file in sorted(path.glob("*/*")) if file.suffix.lower() in _SUFFIXES}
    for line, where in _lines(path / "metadata.csv"):
        name, *texts = line.split("|")
        if not 1 <= len(texts) <= 2 or not name:
            raise UserError(f"{where}: expected id|text or id|text|normalised text")
        yield Recording(name, audio.get(name, path / "wavs" / f"{name}.wav"), (texts[-1] or texts[0]).strip()), where


def _read_librispeech(path: Path) -> _Found:
    for listing in sorted(path.rglob("*.trans.txt")):
        for line, where in _lines(listing):
            name, _, text = line.partition(" ")
            yield Recording(name, _with_suffix(listing.parent / name), text.strip(), name.split("-")[0]), where


def _read_arctic(path: Path) -> _Found:
    for line, where in _lines(path / "etc" / "txt.done.data"):
        match = _ARCTIC.fullmatch(line.strip())
        if not match:
            raise UserError(f'{where}: expected ( id "text" )')
        name, text = match.groups()
        yield Recording(name, _with_suffix(path / "wav" / name), text.replace('\\"', '"').strip()), where


def _read_an4(path: Path) -> _Found:
    for fileids in sorted((path / "etc").glob("*.fileids")):
        files = {Path(line.strip()).name: line.strip() for line, _ in _lines(fileids)}
        listing = fileids.with_suffix(".transcription")
        for line, where in _lines(listing):
            match = _SPHINX.fullmatch(line.strip())
            if not match:
                raise UserError(f"{where}: expected <s> TEXT </s> (id)")
            text, name = match.groups()
            if name not in files:
                raise UserError(f"{where}: {name} is not listed in {fileids}")
            file = _with_suffix(path / "wav" / files[name])
            yield Recording(name, file, text, file.parent.name), where


def _read_sidecars(path: Path) -> _Found:
    for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES):
        sidecar = file.with_suffix(".txt")
        if not sidecar.is_file():
            raise UserError(f"{file}: there is no transcript {sidecar.name} beside it")
        text = " ".join(line.strip() for line, _ in _lines(sidecar))
        yield Recording(file.relative_to(path).with_suffix("").as_posix(), file, text), str(sidecar)


def _read_jsonl(path: Path) -> _Found:
    for line, where in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg})") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError(f'{where}: expected an object with "text"')
        unknown = sorted(set(row) - {"audio", "text", "id", "speaker"})
        if unknown:
            raise UserError(f"{where}: unknown key {unknown[0]!r}; known are audio, text, id, speaker")
        wrong = [key for key in ("audio", "id", "speaker") if not isinstance(row.get(key), (str, type(None)))]
        if wrong:
            raise UserError(f"{where}: {wrong[0]} is not a string")
        audio = path.parent / row["audio"] if row.get("audio") else None
        name = row.get("id") or (row["audio"] if audio else _line_id(path, where))
        yield Recording(name, audio, row["text"].strip(), row.get("speaker")), where


def _read_tsv(path: Path) -> _Found:
    for line, where in _lines(path):
        name, tab, text = line.partition("\t")
        if not tab or not name or "\t" in text:
            raise UserError(f"{where}: expected id<TAB>sentence")
        yield Recording(name, None, text.strip()), where


def _read_text(path: Path) -> _Found:
    if path.suffix.lower() in _SUFFIXES:
        raise UserError(f"{path}: is audio; a corpus is a folder, or a .jsonl, .tsv or .txt file")
    for line, where in _lines(path):
        yield Recording(_line_id(path, where), None, line.strip()), where


def _line_id(path: Path, where: str) -> str:
    return f"{path.stem}-{where.rpartition(' ')[2]}"
