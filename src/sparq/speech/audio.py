"""Reading and writing sound: any format that libsndfile or ffmpeg knows, in and out as 16 kHz mono float32.

Files are read in blocks and resampled as a stream, so that an hour of 48 kHz stereo never lies in memory whole.
A file that ends before its header says it should is refused: half a recording with a whole transcript is worse
than none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import soxr

from sparq.errors import UserError
from sparq.speech.foreign_audio import decoded, foreign_header, is_foreign
from sparq.speech.quiet import quiet_standard_error

RATE = 16000
"""Samples per second of everything inside SpARQ."""

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aiff", ".aif", ".au", ".oga", ".caf", ".w64", ".rf64")
"""How names of audio files end. Contents decide how a file is read, so one of another name can be read too."""

_BLOCK_SECONDS = 30
_ROUNDING = 0.05  # seconds; lists of segments round, and may end a little behind their file
_CANCELLED = 1e-3  # of a channel's energy: what is left of speech with one channel the wrong way round
_MP3_SLACK = 2 * 1152  # frames; encoders without a length in their header are only known to within a packet or two
_CHUNK_SIZES = re.compile(r"data\s*: (\d+) \(should be (\d+)\)")
_OPEN_WAV = struct.Struct("<4sI8sIHHIIHH4sI")  # of a file whose length nobody knows yet
_UNKNOWN_SIZE = 2**31 - 2  # what programs that write to a pipe put where the size belongs, or more


def load_audio(
    source: str | Path | IO[bytes],
    rate: int = RATE,
    *,
    start: float = 0.0,
    seconds: float | None = None,
    channel: int | None = None,
) -> np.ndarray:
    """Read wav, flac, ogg, mp3 or anything else libsndfile reads, of any rate and number of channels.

    Files whose names end in one of ``FOREIGN_SUFFIXES`` (m4a, webm, mp4) are decoded by ffmpeg.

    Args:
        source: a path, or a binary file (standard input, an upload), which is read to its end, as a named pipe is.
        rate: samples per second of what is returned.
        start: where in the file to begin, in seconds; what is before is not decoded, unless by ffmpeg.
        seconds: how much to read; None to the end.
        channel: the channel to read, from 0; None for the mean of all, or, where they cancel each other out, the
            loudest.

    Returns:
        float32 ``[samples]``, full scale at ±1. Silence is allowed.

    Raises:
        UserError: missing, not audio, for ffmpeg where that is not there, truncated, shorter than what is to be read,
            without that channel, without samples, or with values that are not finite; or neither a path nor a file.
    """
    part = _Part(start, seconds, channel)
    if isinstance(source, (str, Path)):
        name, path = str(source), Path(source)
        if path.is_fifo():
            return _decode(name, io.BytesIO(path.read_bytes()), rate, part)
        if not path.is_file():
            raise UserError(f"{name}: {'is a folder' if path.is_dir() else 'no such file'}")
        if not _is_utf8(name):
            raise UserError(f"{name!r}: its name is not UTF-8 (rename it)")
        return _decode(name, name, rate, part)
    if not hasattr(source, "read"):
        raise UserError(f"recording: {type(source).__name__} (expected a file: its path, or one opened in binary mode)")
    name = str(getattr(source, "name", "audio"))
    file: Any = source
    if isinstance(file, io.TextIOBase):
        raise UserError(f"{name}: opened as text (expected a file opened in binary mode)")
    return _decode("standard input" if name == "<stdin>" else name, io.BytesIO(file.read()), rate, part)


@dataclasses.dataclass(frozen=True)
class _Part:
    """What of a file is read."""

    start: float
    seconds: float | None
    channel: int | None


def _decode(name: str, source: str | io.BytesIO, rate: int, part: _Part) -> np.ndarray:
    try:
        with _opened(source) as file:
            if part.channel is not None and part.channel >= file.channels:
                raise UserError(f"{name}: has no channel {part.channel} (there are {file.channels})")
            count, left = _seek(name, file, part)
            resampler = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32")
            parts, energy = [], np.zeros(file.channels + 1)
            while left:
                block = _read(file, min(left, _BLOCK_SECONDS * file.samplerate))
                if not len(block):
                    break
                count, left = count + len(block), left - len(block)
                parts.append(resampler.resample_chunk(_mono(block, part.channel, energy), last=False))
            if part.seconds is None:
                _check_whole(name, file, count)
            elif left > _ROUNDING * file.samplerate:
                raise UserError(f"{name}: ends after {count / file.samplerate:.2f} s, before what is to be read of it")
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:  # the last for .raw files
        raise UserError(f"{name}: not audio, or damaged ({_reason(error)})") from error
    loudest = int(energy[:-1].argmax())
    if energy[-1] < _CANCELLED * energy[loudest]:
        if isinstance(source, io.BytesIO):
            source.seek(0)
        return _decode(name, source, rate, dataclasses.replace(part, channel=loudest))
    parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    return check_waveform(np.concatenate(parts), name)


def _reason(error: Exception) -> str:
    reason = str(error).rpartition(": ")[2].rstrip(".").lower()
    if isinstance(error, TypeError) or reason == "format not recognised":
        return "no header says what it holds; raw samples must be given one, as in a .wav file"
    if reason.startswith("file does not exist"):  # said of an .mp3 without MP3 in it
        return "nothing in it can be decoded"
    return reason


def _opened(source: str | io.BytesIO) -> contextlib.AbstractContextManager[soundfile.SoundFile]:
    if isinstance(source, str) and is_foreign(Path(source)):
        return decoded(Path(source))
    with quiet_standard_error():
        return soundfile.SoundFile(source)


def _read(file: soundfile.SoundFile, frames: int) -> np.ndarray:
    """Read the next frames, or those that are left, as float32 ``[frames, channels]``."""
    with quiet_standard_error() if _is_mp3(file) else contextlib.nullcontext():
        return file.read(frames, dtype="float32", always_2d=True)


def _is_mp3(file: soundfile.SoundFile) -> bool:
    return file.subtype.startswith("MPEG")  # in a .wav, too


def _mono(block: np.ndarray, channel: int | None, energy: np.ndarray) -> np.ndarray:
    """Give a channel or the mean of all; where there are several, the energy of each and of the mean is added up."""
    if channel is not None:
        return np.ascontiguousarray(block[:, channel])
    mono = block.mean(axis=1)
    if block.shape[1] > 1:
        energy += [*np.square(block).sum(axis=0), np.square(mono).sum()]
    return mono


def _seek(name: str, file: soundfile.SoundFile, part: _Part) -> tuple[int, int]:
    """Go to where a part begins; returns that, in frames, and how many are to be read from there."""
    begin, passed = round(part.start * file.samplerate), 0
    if begin <= file.frames and file.seekable():
        passed = file.seek(begin) if begin else 0
    while passed < begin:  # GSM, and what ffmpeg decodes, can only be read from its beginning
        block = _read(file, min(begin - passed, _BLOCK_SECONDS * file.samplerate))
        if not len(block):
            raise UserError(f"{name}: ends after {passed / file.samplerate:.2f} s, before {part.start:.2f} s")
        passed += len(block)
    return begin, sys.maxsize if part.seconds is None else round(part.seconds * file.samplerate)


def _check_whole(name: str, file: soundfile.SoundFile, count: int) -> None:
    """Refuse a file that ends early, by what each format lets one know."""
    if isinstance(file.name, int):  # the pipe of a decoder that refuses it by itself
        return
    info = file.extra_info
    sizes = _CHUNK_SIZES.search(info)
    told, there = map(int, sizes.groups()) if sizes else (0, 0)
    cut_wav = there < told < _UNKNOWN_SIZE
    cut_ogg = "lacks an end-of-stream" in info or "Junk after the last page" in info
    slack = _MP3_SLACK if _is_mp3(file) else 0
    if cut_wav or cut_ogg or count + slack < file.frames:
        raise UserError(f"{name}: truncated, ends after {count / file.samplerate:.2f} s")


def read_header(path: Path) -> tuple[int, float]:
    """Say how many samples a second and seconds a file has by its header; nothing is decoded, and no pipe read.

    Returns:
        Zeros where that cannot be told.
    """
    if not path.is_file() or not _is_utf8(str(path)):
        return 0, 0.0
    if is_foreign(path):
        return foreign_header(path)
    try:
        with quiet_standard_error():
            info = soundfile.info(path)
    except (soundfile.SoundFileError, RuntimeError, TypeError):
        return 0, 0.0
    return info.samplerate, float(info.duration)


def _is_utf8(name: str) -> bool:
    """Whether libsndfile, and those who read what is told of a file, can take its name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_waveform(waveform: np.ndarray, name: str = "waveform") -> np.ndarray:
    """Return a waveform as contiguous float32 ``[samples]``; signed integers become shares of their full scale.

    Raises:
        UserError: not one-dimensional, empty, of unsigned integers, or with NaN or infinite values; the line starts
            with ``name``.
    """
    given = np.asarray(waveform)
    if given.dtype.kind == "u":
        raise UserError(f"{name}: {given.dtype} samples (expected floating-point numbers or signed integers)")
    samples = np.ascontiguousarray(given, dtype=np.float32)
    if given.dtype.kind == "i":
        samples = samples / np.float32(-float(np.iinfo(given.dtype).min))
    if samples.ndim != 1:
        raise UserError(f"{name}: expected one channel [samples], got shape {list(samples.shape)}")
    if not samples.size:
        raise UserError(f"{name}: holds no samples")
    if not np.isfinite(samples).all():
        where = int(np.argmin(np.isfinite(samples)))
        raise UserError(f"{name}: sample {where} is not a finite number")
    return samples


def save_audio(path: str | Path, waveform: np.ndarray, rate: int = RATE) -> None:
    """Write ``[samples]`` in the format of the path's suffix (wav and flac with 16 bits), clipped to ±1.

    The file appears under its name only when it is whole.

    Raises:
        UserError: a suffix without a format, a folder that is not there or cannot be written to, or a bad waveform.
    """
    path = Path(path)
    samples = np.clip(check_waveform(waveform, str(path)), -1.0, 1.0)
    file_format = check_suffix(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        soundfile.write(temporary, samples, rate, format=file_format)
        temporary.replace(path)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_suffix(path: Path) -> str:
    """Give the format that the end of a file's name asks for.

    Raises:
        UserError: there is none, or no folder that the file could be in.
    """
    file_format = path.suffix[1:].upper()
    if file_format == "RAW" or file_format not in soundfile.available_formats():  # the former without a header
        raise UserError(f"{path}: {path.suffix or 'no suffix'} (expected .wav, .flac, .ogg or .mp3 at the end)")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    return file_format


def stream_audio(
    target: str | Path | IO[bytes], chunks: Iterable[np.ndarray], rate: int = RATE, *, raw: bool = False
) -> int:
    """Write chunks ``[samples]`` as they come, each heard by a reader before the next is made.

    Args:
        target: a path, whose file grows under its name; or a binary file (standard output), which gets a wav with 16
            bits whose header leaves its length open.
        chunks: of the waveform, clipped to ±1.
        rate: samples per second.
        raw: leave the header out, where the target is a binary file.

    Returns:
        How many samples were written.

    Raises:
        UserError: a suffix without a format, or a folder that is not there or cannot be written to.
    """
    count = 0
    if not isinstance(target, (str, Path)):
        if not raw:
            sizes, layout = 2**32 - 1, (16, 1, 1, rate, 2 * rate, 2, 16)
            target.write(_OPEN_WAV.pack(b"RIFF", sizes, b"WAVEfmt ", *layout, b"data", sizes))
        for chunk in chunks:
            target.write((np.clip(chunk, -1.0, 1.0) * 32767).round().astype("<i2").tobytes())
            target.flush()
            count += len(chunk)
        return count
    path = Path(target)
    file_format = check_suffix(path)
    try:
        file = soundfile.SoundFile(path, "w", rate, 1, format=file_format)
    except (OSError, soundfile.SoundFileError) as error:
        raise UserError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error
    with file:
        for chunk in chunks:
            file.write(np.clip(chunk, -1.0, 1.0))
            file.flush()
            count += len(chunk)
    return count
