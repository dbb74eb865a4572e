"""The corpora of the paper (section 4, "Datasets") as they are unpacked, and what is known to be odd about each.

=========== ========================================================================================================
corpus      what its folder holds
=========== ========================================================================================================
LibriSpeech ``PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`` (``id TEXT``), audio beside it
LibriTTS    ``PART/SPEAKER/CHAPTER/SPEAKER_CHAPTER.trans.tsv`` (id, text as printed, text as read), audio beside it
MLS         ``PART/transcripts.txt`` (``id<TAB>text``), ``PART/audio/SPEAKER/BOOK/SPEAKER_BOOK_NUMBER.flac`` or opus
VCTK        ``txt/SPEAKER/SPEAKER_NUMBER.txt``; ``wav48_silence_trimmed/SPEAKER/SPEAKER_NUMBER_mic1.flac`` (0.92), or
            ``wav48/SPEAKER/SPEAKER_NUMBER.wav`` (0.80)
LibriLight  ``PART/SPEAKER/BOOK/NAME.flac`` and ``NAME.json`` (speaker, when somebody speaks), no transcripts
=========== ========================================================================================================

LJ Speech is a layout that others share (:func:`sparq.corpus.layouts.read_ljspeech`). All are read from their lists, in
the order of their names; no audio is opened. Lhotse's recipes find the same utterances, which the tests compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparq.corpus.recording import Found, Recording, audio_below, audio_named, files_below, lines_of
from sparq.errors import UserError

LONGEST_SECONDS = 20.0
"""LibriLight is cut into utterances of at most so much. The paper's 60,000 hours in 12 million are 18 s each."""

_VCTK_WITHOUT_SOME_AUDIO = ("p362",)  # in 0.92; p315, whose texts were lost, has no folder in txt/


def read_librispeech(path: Path) -> Found:
    """Read LibriSpeech, or a part of it; the speaker is the id's first number."""
    for listing in _listings(path, ".trans.txt"):
        for line, where in lines_of(listing):
            name, _, text = line.partition(" ")
            yield Recording(name, audio_named(listing.parent / name), text.strip(), name.split("-")[0]), where


def read_libritts(path: Path) -> Found:
    """Read LibriTTS or LibriTTS-R, or a part of it, the text as it is read aloud."""
    for listing in _listings(path, ".trans.tsv"):
        for line, where in lines_of(listing):
            columns = line.split("\t")
            if len(columns) != 3:
                raise UserError(f"{where}: expected id<TAB>text<TAB>normalised text")
            name, _, text = columns
            yield Recording(name, audio_named(listing.parent / name), text.strip(), name.split("_")[0]), where


def read_mls(path: Path) -> Found:
    """Read one language of Multilingual LibriSpeech, or a part of it."""
    listings = (
        [path / "transcripts.txt"] if (path / "transcripts.txt").is_file() else sorted(path.glob("*/transcripts.txt"))
    )
    for listing in listings:
        for line, where in lines_of(listing):
            name, tab, text = line.partition("\t")
            if not tab or name.count("_") != 2:
                raise UserError(f"{where}: expected speaker_book_number<TAB>text")
            speaker, book, _ = name.split("_")
            yield (
                Recording(name, audio_named(listing.parent / "audio" / speaker / book / name), text.strip(), speaker),
                where,
            )


def read_vctk(path: Path) -> Found:
    """Read VCTK, the first microphone where there are two; a text that is lost in the published corpus is left out."""
    trimmed = path / "wav48_silence_trimmed"
    for file in sorted((path / "txt").glob("*/*.txt")):
        speaker, name = file.parent.name, file.stem
        if trimmed.is_dir():
            microphones = [audio_named(trimmed / speaker / f"{name}_mic{number}") for number in (1, 2)]
            audio = next((found for found in microphones if found.is_file()), microphones[0])
        else:
            audio = audio_named(path / "wav48" / speaker / name)
        if speaker not in _VCTK_WITHOUT_SOME_AUDIO or audio.is_file():
            yield Recording(name, audio, " ".join(line.strip() for line, _ in lines_of(file)), speaker), str(file)


def read_librilight(path: Path) -> Found:
    """Read LibriLight, or a part of it, cut where nobody speaks into utterances of at most ``LONGEST_SECONDS``."""
    for audio in audio_below(path):
        where = audio.with_suffix(".json")
        try:
            told = json.loads(where.read_text(encoding="utf-8"))
            speaker, activity = str(told["speaker"]), [(float(a), float(b)) for a, b in told["voice_activity"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: missing, or without speaker and voice_activity ({error!r})") from error
        name = audio.relative_to(path).with_suffix("").as_posix()
        for i, (start, end) in enumerate(join_segments(activity)):
            yield Recording(f"{name}-{i}", audio, None, speaker, start, end - start), str(where)


def join_segments(
    segments: Sequence[tuple[float, float]], longest: float = LONGEST_SECONDS
) -> Iterator[tuple[float, float]]:
    """Join neighbouring segments, pauses between them included, as far as the whole is no longer than it may be.

    Args:
        segments: start and end of each in seconds, in order.
        longest: seconds; a segment that alone is longer is cut into equal parts.
    """
    joined: tuple[float, float] | None = None
    for start, end in segments:
        if joined is not None and end - joined[0] <= longest:
            joined = joined[0], end
            continue
        if joined is not None:
            yield joined
        parts = max(1, -int(-(end - start) // longest))
        step = (end - start) / parts
        yield from ((start + i * step, start + (i + 1) * step) for i in range(parts - 1))
        joined = start + (parts - 1) * step, end
    if joined is not None:
        yield joined


def _listings(path: Path, ending: str) -> list[Path]:
    return sorted(file for file in files_below(path) if file.name.endswith(ending))
