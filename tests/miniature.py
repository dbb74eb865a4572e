"""The corpora of the paper in miniature: the folders as they are unpacked, with synthetic audio of half a second or so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

TEXTS = [
    "the train leaves at half past nine", "she would like a garden", "a neighbour said so", "nothing was found there",
    "the house stood empty", "come back soon", "it was cold and nobody spoke", "we shall see", "who goes there",
    "bring the lamp", "he paid in silver", "the old mill is closed",
]  # fmt: skip
RATES = {"flac": 16_000, "opus": 48_000, "wav": 24_000}


def sound(path: Path, seconds: float = 0.6, seed: int = 0) -> None:
    """Write a few changing tones in noise, in the format of the suffix."""
    rate = RATES[path.suffix[1:]]
    random = np.random.default_rng(seed)
    tones = np.repeat(random.uniform(100, 2000, 12), -(-int(seconds * rate) // 12))[: int(seconds * rate)]
    wave = 0.2 * np.sin(np.cumsum(2 * np.pi * tones / rate)) + 0.01 * random.normal(size=len(tones))
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, wave, rate, **written)


def librispeech(root: Path, part: str = "train-clean-100", texts: Sequence[str] = TEXTS[:3]) -> Path:
    folder = root / part / "84" / "121"
    for i, _ in enumerate(texts):
        sound(folder / f"84-121-{i:04}.flac", seed=i)
    rows = (f"84-121-{i:04} {text.upper()}\n" for i, text in enumerate(texts))
    (folder / "84-121.trans.txt").write_text("".join(rows))
    return root


def libritts(root: Path, part: str = "train-clean-100", texts: Sequence[str] = TEXTS[:3]) -> Path:
    folder = root / part / "14" / "208"
    names = [f"14_208_{i:06}_000000" for i in range(len(texts))]
    for i, name in enumerate(names):
        sound(folder / f"{name}.wav", seed=10 + i)
    rows = (f"{name}\tNo. {text}\tNumber {text}.\n" for name, text in zip(names, texts, strict=True))
    (folder / "14_208.trans.tsv").write_text("".join(rows))
    (folder / "14_208.book.tsv").write_text("".join(f"{name}\tx\t0.1\t30.5\n" for name in names))
    (folder / "._14_208.trans.tsv").write_bytes(b"\x00\x05\x16\x07")  # as macOS left some in the archive
    return root


def mls(root: Path, texts: Sequence[str] = TEXTS[:3], suffix: str = "opus") -> Path:
    for part, shift in (("train", 0), ("dev", 100), ("test", 200)):
        names = [f"4800_10003_{shift + i:06}" for i in range(len(texts))]
        for i, name in enumerate(names):
            sound(root / part / "audio" / "4800" / "10003" / f"{name}.{suffix}", seed=shift + i)
        rows = (f"{name}\t{text} in {part}\n" for name, text in zip(names, texts, strict=True))
        (root / part / "transcripts.txt").write_text("".join(rows))
    (root / "metainfo.txt").write_text(" SPEAKER | GENDER | PARTITION | MINUTES\n 4800 | M | train | 1\n")
    return root


def vctk(root: Path, texts: Sequence[str] = TEXTS[:2]) -> Path:
    """Version 0.92: two microphones; p315 without texts, p362 without some audio."""
    for speaker in ("p225", "p362"):
        for i, _ in enumerate(texts, start=1):
            for microphone in (1, 2):
                if (speaker, i) != ("p362", 1):
                    name = f"{speaker}_{i:03}_mic{microphone}.flac"
                    sound(root / "wav48_silence_trimmed" / speaker / name, seed=20 + i + microphone)
    sound(root / "wav48_silence_trimmed" / "p315" / "p315_001_mic1.flac")
    _vctk_texts(root, ("p225", "p362"), texts)
    return root


def old_vctk(root: Path, texts: Sequence[str] = TEXTS[:2]) -> Path:
    """Version 0.80."""
    for i, _ in enumerate(texts, start=1):
        sound(root / "wav48" / "p225" / f"p225_{i:03}.wav", seed=20 + i)
    _vctk_texts(root, ("p225",), texts)
    (root / "speaker-info.txt").write_text(
        "ID  AGE  GENDER  ACCENTS  REGION\n225  23  F    English    Southern  England\n"
    )
    return root


def _vctk_texts(root: Path, speakers: Sequence[str], texts: Sequence[str]) -> None:
    for speaker in speakers:
        folder = root / "txt" / speaker
        folder.mkdir(parents=True)
        for i, text in enumerate(texts, start=1):
            (folder / f"{speaker}_{i:03}.txt").write_text(f"{text.capitalize()}.\n")


def librilight(root: Path, parts: Sequence[str] = ("small",), seconds: float = 3.0) -> Path:
    for part in parts:
        for speaker in ("100", "204"):
            file = root / part / speaker / "a_book_64kb_mp3" / f"chapter_{part}.flac"
            sound(file, seconds, seed=int(speaker))
            told = {"speaker": speaker, "snr": 9.5, "voice_activity": [[0.1, 0.9], [1.0, 1.5], [2.0, seconds - 0.1]]}
            file.with_suffix(".json").write_text(json.dumps(told))
    return root


def ljspeech(root: Path, texts: Sequence[str] = TEXTS[:3], seconds: float = 0.6) -> Path:
    for i, _ in enumerate(texts):
        sound(root / "wavs" / f"LJ001-{i:04}.wav", seconds, seed=30 + i)
    rows = (f"LJ001-{i:04}|Dr. {text}|Doctor {text}.\n" for i, text in enumerate(texts))
    (root / "metadata.csv").write_text("".join(rows))
    return root
