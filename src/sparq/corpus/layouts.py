"""Layouts that many corpora share: lists with audio beside them, folders of audio, and files of text."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparq.corpus.recording import Found, Recording, audio_below, audio_named, is_audio, lines_of
from sparq.errors import UserError

_ARCTIC = re.compile(r'\(\s*(\S+)\s+"(.*)"\s*\)')
_LIST = (3, 8)  # words that are read out in one breath
_SPHINX = re.compile(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\((\S+)\)")


def read_ljspeech(path: Path) -> Found:
    """Read ``metadata.csv`` with audio named by id in any folder beside it."""
    audio = {file.stem: file for file in sorted(path.glob("*/*")) if is_audio(file)}
    for line, where in lines_of(path / "metadata.csv"):
        name, *texts = line.split("|")
        if not 1 <= len(texts) <= 2 or not name:
            raise UserError(f"{where}: expected id|text or id|text|normalised text")
        yield Recording(name, audio.get(name, path / "wavs" / f"{name}.wav"), (texts[-1] or texts[0]).strip()), where


def read_arctic(path: Path) -> Found:
    """Read ``etc/txt.done.data`` with audio in ``wav/``."""
    for line, where in lines_of(path / "etc" / "txt.done.data"):
        match = _ARCTIC.fullmatch(line.strip())
        if not match:
            raise UserError(f'{where}: expected ( id "text" )')
        name, text = match.groups()
        yield Recording(name, audio_named(path / "wav" / name), text.replace('\\"', '"').strip()), where


def read_an4(path: Path) -> Found:
    """Read ``etc/*.fileids`` and ``etc/*.transcription`` with audio in ``wav/``; its folder is the speaker."""
    for fileids in sorted((path / "etc").glob("*.fileids")):
        files = {Path(line.strip()).name: line.strip() for line, _ in lines_of(fileids)}
        listing = fileids.with_suffix(".transcription")
        for line, where in lines_of(listing):
            match = _SPHINX.fullmatch(line.strip())
            if not match:
                raise UserError(f"{where}: expected <s> TEXT </s> (id)")
            text, name = match.groups()
            if name not in files:
                raise UserError(f"{where}: {name} is not listed in {fileids}")
            file = audio_named(path / "wav" / files[name])
            yield Recording(name, file, text, file.parent.name), where


def read_sidecars(path: Path) -> Found:
    """Read a folder of audio with ``name.txt`` beside each ``name.wav``."""
    for recording, where in read_audio(path):
        assert recording.audio is not None
        sidecar = recording.audio.with_suffix(".txt")
        if sidecar.is_file():
            text = " ".join(line.strip() for line, _ in lines_of(sidecar))
            yield Recording(recording.id, recording.audio, text), str(sidecar)
        else:
            yield recording, f"{where} without {sidecar.name} beside it"


def read_audio(path: Path) -> Found:
    """Read a folder of audio, as speech alone."""
    for file in audio_below(path):
        yield Recording(file.relative_to(path).with_suffix("").as_posix(), file, None), str(file)


def read_jsonl(path: Path) -> Found:
    """Read ``{"audio": path relative to the file, "text": ..., "id": ..., "speaker": ...}``, an object a line."""
    for row, where in objects_of(path):
        unknown = sorted(set(row) - {"audio", "text", "id", "speaker"})
        if unknown:
            raise UserError(f"{where}: unknown key {unknown[0]!r}; known are audio, text, id, speaker")
        wrong = [key for key in ("audio", "text", "id", "speaker") if not isinstance(row.get(key), (str, type(None)))]
        if wrong:
            raise UserError(f"{where}: {wrong[0]} is not a string")
        if not row.get("audio") and row.get("text") is None:
            raise UserError(f'{where}: expected an object with "audio" or "text"')
        audio = path.parent / row["audio"] if row.get("audio") else None
        name = row.get("id") or (row["audio"] if audio else _line_id(path, where))
        text = None if row.get("text") is None else row["text"].strip()
        yield Recording(name, audio, text, row.get("speaker")), where


def objects_of(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the object of each line of a JSONL file, gzipped or not, and "file, line n"."""
    for line, where in lines_of(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object")
        yield row, where


def read_tsv(path: Path) -> Found:
    """Read ``id<TAB>sentence``."""
    for line, where in lines_of(path):
        name, tab, text = line.partition("\t")
        if not tab or not name or "\t" in text:
            raise UserError(f"{where}: expected id<TAB>sentence")
        yield Recording(name, None, text.strip()), where


def read_text(path: Path) -> Found:
    """Read one sentence a line."""
    if is_audio(path):
        raise UserError(f"{path}: is audio; a corpus is a folder, or a .jsonl, .tsv or .txt file")
    for line, where in lines_of(path):
        yield Recording(_line_id(path, where), None, line.strip()), where


def read_words(path: Path) -> Found:
    """Read a word a line, and make sentences of three to eight words that have nothing to do with each other.

    Which words meet follows from the name of the file alone. They teach how words are spelt that sentences seldom have.
    """
    chance = random.Random(path.name)
    words = [(line.strip(), where) for line, where in lines_of(path)]
    chance.shuffle(words)
    left = iter(words)
    while some := list(itertools.islice(left, chance.randint(*_LIST))):
        yield Recording(_line_id(path, some[0][1]), None, " ".join(word for word, _ in some)), some[0][1]


def _line_id(path: Path, where: str) -> str:
    return f"{path.name.partition('.')[0] if path.suffix == '.gz' else path.stem}-{where.rpartition(' ')[2]}"
