"""Readers: recordings, transcripts and texts, from the layouts that corpora come in.

=========== ========================================================================================================
layout      what it is known by
=========== ========================================================================================================
librispeech ``*.trans.txt`` anywhere below (:mod:`sparq.corpus.published`, as the next four)
libritts    ``*.trans.tsv`` anywhere below
mls         ``transcripts.txt`` in the folder or one below it
vctk        ``txt/`` and ``wav48*/``
librilight  ``name.json`` with voice_activity beside ``name.flac``; no transcripts
ljspeech    ``metadata.csv`` with ``id|text`` or ``id|text|normalised text``; audio named by id in any folder beside it
arctic      ``etc/txt.done.data`` with ``( id "text" )``, audio in ``wav/``
an4         ``etc/*.fileids`` and ``etc/*.transcription`` (``<s> TEXT </s> (id)``), audio in ``wav/``
lhotse      manifests of Lhotse (:mod:`sparq.corpus.manifests`): ``*supervisions*.jsonl.gz`` with
            ``*recordings*.jsonl.gz``, or ``*cuts*.jsonl.gz``
sidecars    a folder of audio with ``name.txt`` beside each ``name.wav``
audio       a folder of audio, read as speech alone
jsonl       ``{"audio": path relative to the file, "text": ..., "id": ..., "speaker": ...}``; audio or text is enough
tsv         ``id<TAB>sentence``
text        one sentence a line; also gzipped, as the text corpus of LibriSpeech is
words       a word a line, of which sentences are drawn that teach spelling
book        running prose in Markdown, ``*.md``, or named so in plain text, ``*.txt``; a book or a folder of them
            (:mod:`sparq.corpus.books`)
=========== ========================================================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sparq.corpus import books, layouts, published
from sparq.corpus.manifests import prepared, read_lhotse
from sparq.corpus.recording import Found, Recording, files_below, is_audio
from sparq.errors import UserError
from sparq.schema import did_you_mean

READERS: dict[str, Callable[[Path], Found]] = {
    "librispeech": published.read_librispeech,
    "libritts": published.read_libritts,
    "mls": published.read_mls,
    "vctk": published.read_vctk,
    "librilight": published.read_librilight,
    "ljspeech": layouts.read_ljspeech,
    "arctic": layouts.read_arctic,
    "an4": layouts.read_an4,
    "lhotse": read_lhotse,
    "sidecars": layouts.read_sidecars,
    "audio": layouts.read_audio,
    "jsonl": layouts.read_jsonl,
    "tsv": layouts.read_tsv,
    "text": layouts.read_text,
    "words": layouts.read_words,
    "book": books.read_book,
}
_FILES = {".jsonl": "jsonl", ".tsv": "tsv", ".md": "book"}
_MARKS = {".trans.txt": "librispeech", ".trans.tsv": "libritts"}


def read_corpus(
    path: str | Path,
    layout: str | None = None,
    parts: Sequence[str] = (),
    *,
    audio: bool = True,
    text: bool = True,
    left_out: Counter[str] | None = None,
) -> Iterator[Recording]:
    """Read a corpus, one recording at a time, in the order of its lists.

    Args:
        path: the folder or file.
        layout: one of ``READERS``, or ``lhotse:NAME`` for a recipe of Lhotse; None finds it by looking.
        parts: folders in it that are read alone, such as "train-clean-100"; of manifests, what their names end in.
        audio: whether audio is wanted: then the files that are named must be there.
        text: whether transcripts are wanted: then a recording without one is an error.
        left_out: where they are wanted, counts recordings without one, which are then passed over; None refuses them.

    Raises:
        UserError: no such path or part, no known layout, nothing in it, a line that cannot be read, a transcript that
            is empty or missing (with ``left_out``: all of them), an id that is twice in one part, or an audio file
            that is missing; the line names the file and the line number.
    """
    path = Path(path)
    if layout is not None and layout.startswith("lhotse:"):
        path, layout = prepared(path, layout.removeprefix("lhotse:"), parts), "lhotse"
    if layout is None and _holds_manifests(path):
        layout = "lhotse"
    parts = list(dict.fromkeys(parts))
    places = _places(path, layout, parts)
    layout = layout or find_layout(places[0])
    if layout == "sidecars" and not text:
        layout = "audio"
    before: set[str] = set()
    empty, untranscribed = True, Counter[str]()
    for place, part in zip(places, parts or [""], strict=True):
        seen: set[str] = set()
        found = READERS[layout](place)
        for recording, where in _transcribed(found, untranscribed) if text and left_out is not None else found:
            _check(recording, where, audio=audio, text=text)
            if recording.id in seen:
                raise UserError(f"{where}: {recording.id} is there twice")
            if layout != "text":  # where ids are numbers of lines; and it may hold 40 million of them
                seen.add(recording.id)
            empty = False
            # Parts may number what they hold alike.
            yield replace(recording, id=f"{part}/{recording.id}") if recording.id in before else recording
        before |= seen
    if empty:
        passed = untranscribed.total()
        raise UserError(
            f"{path}: " + (f"none of {passed} recordings has a transcript" if passed else "holds no recordings")
        )
    if left_out is not None:
        left_out.update(untranscribed)


def _transcribed(found: Found, left_out: Counter[str]) -> Found:
    """Pass over recordings without a transcript, and count them."""
    for recording, where in found:
        if recording.audio is None or recording.text:
            yield recording, where
        else:
            left_out["no transcript, or an empty one"] += 1


def _check(recording: Recording, where: str, *, audio: bool, text: bool) -> None:
    for name in ("id", "text", "speaker"):
        value = getattr(recording, name)
        if value and any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{where}: {name} {value!r} holds half a character, or bytes that are not UTF-8")
    if text and recording.text is None:
        raise UserError(f"{where}: {recording.id} has no transcript (speech alone is of kind audio-only)")
    if text and not recording.text:
        raise UserError(f"{where}: {recording.id} has no text")
    if audio and recording.audio is not None and not recording.audio.is_file():
        raise UserError(f"{where}: there is no audio file {recording.audio}")


def find_layout(path: Path) -> str:
    """Find out which layout a folder or file has, by looking at names.

    Raises:
        UserError: no such path, or no known layout.
    """
    if path.is_file():
        name = Path(path.name.removesuffix(".gz"))
        if name.suffix == ".jsonl" and ("cuts" in name.stem or "supervisions" in name.stem):
            return "lhotse"
        return _FILES.get(name.suffix.lower(), "text")
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    known = {
        "ljspeech": (path / "metadata.csv").is_file(),
        "arctic": (path / "etc" / "txt.done.data").is_file(),
        "an4": any((path / "etc").glob("*.fileids")),
        "vctk": (path / "txt").is_dir() and any(path.glob("wav48*")),
        "mls": any(path.glob("transcripts.txt")) or any(path.glob("*/transcripts.txt")),
        "lhotse": _holds_manifests(path),
    }
    return next((name for name, is_it in known.items() if is_it), None) or _marked(path)


def _holds_manifests(path: Path) -> bool:
    return any(path.glob("*supervisions*.jsonl*")) or any(path.glob("*cuts*.jsonl*"))


def _marked(path: Path) -> str:
    """Find the layout that a file somewhere below a folder tells; one walk, as far as need be."""
    holds_audio = holds_books = False
    for file in files_below(path):
        mark = next((layout for suffix, layout in _MARKS.items() if file.name.endswith(suffix)), None)
        if mark is not None:
            return mark
        if file.suffix == ".json" and file.with_suffix(".flac").is_file() and b"voice_activity" in file.read_bytes():
            return "librilight"
        holds_audio = holds_audio or is_audio(file)
        holds_books = holds_books or file.suffix == ".md"
    if holds_audio:
        return "sidecars"
    if holds_books:
        return "book"
    raise UserError(
        f"{path}: no known corpus layout (metadata.csv, *.trans.txt, *.trans.tsv, transcripts.txt, txt/ with wav48/, "
        "etc/, manifests of Lhotse, audio with .txt beside it, or books in *.md)"
    )


def _places(path: Path, layout: str | None, parts: Sequence[str]) -> list[Path]:
    """Give the folders, or of manifests the files, that parts are in."""
    if not parts:
        return [path]
    if layout == "lhotse":
        return [_manifest(path, part) for part in parts]
    if not path.is_dir():
        raise UserError(f"{path}: no such folder, so it has no parts")
    for part in parts:
        if not (path / part).is_dir():
            known = [found.name for found in path.iterdir() if found.is_dir()]
            raise UserError(f"{path}: there is no part {part!r} in it ({did_you_mean(part, known)})")
    return [path / part for part in parts]


def _manifest(path: Path, part: str) -> Path:
    names = [f"*{kind}_{part}.jsonl{end}" for kind in ("supervisions", "cuts") for end in (".gz", "")]
    found = next((file for name in names for file in sorted(path.glob(name))), None)
    if found is None:
        known = {file.name.partition(".jsonl")[0].rpartition("_")[2] for file in path.glob("*.jsonl*")}
        raise UserError(f"{path}: there is no part {part!r} in it ({did_you_mean(part, known)})")
    return found
