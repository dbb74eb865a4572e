"""Sound that libsndfile does not read, m4a and that of videos among it, decoded by ffmpeg where it is installed.

Its samples come through a pipe, as an AU file of 32-bit floats, so that they never lie in memory or on disk whole.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import soundfile

from sparq.errors import UserError

FOREIGN_SUFFIXES = (
    ".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".aac", ".amr", ".webm", ".mkv", ".mka", ".wma", ".wmv", ".avi",
)  # fmt: skip
"""How names of files end that ffmpeg is asked to decode."""

_BROKEN = re.compile(r"invalid data|partial file|ended prematurely|truncat", re.IGNORECASE)
_DURATION = re.compile(r"Duration: (\d+):(\d+):(\d+\.\d+)")
_RATE = re.compile(r"Audio: .*?(\d+) Hz")


def is_foreign(path: Path) -> bool:
    """Whether ffmpeg is needed to read a file, by its name."""
    return path.suffix.lower() in FOREIGN_SUFFIXES


def has_ffmpeg() -> bool:
    """Whether the program ``ffmpeg`` is to be found."""
    return shutil.which("ffmpeg") is not None


@contextlib.contextmanager
def decoded(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open the first sound of a file, to be read once, from its beginning on; how many frames it has is not known.

    Raises:
        UserError: ffmpeg is missing, or finds no sound; or, where it was read to its end, that it is damaged.
    """
    command = [*_given(path), "-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=told) as process,
    ):
        assert process.stdout is not None
        try:
            with soundfile.SoundFile(process.stdout.fileno(), closefd=False) as file:
                yield file
            if process.stdout.read(1):
                return  # a part was wanted
            failed = process.wait() != 0
            broken = [line for line in _lines(told) if failed or _BROKEN.search(line)]
            if failed or broken:
                raise UserError(f"{path}: truncated or damaged ({_reason(broken)})")
        except soundfile.SoundFileError as error:
            process.stdout.close()
            process.wait()
            raise UserError(f"{path}: not audio, or damaged ({_reason(_lines(told))})") from error
        finally:
            process.kill()


def foreign_header(path: Path) -> tuple[int, float]:
    """Say how many samples a second and seconds a file has, zeros where that cannot be told; nothing is decoded."""
    if not has_ffmpeg():
        return 0, 0.0
    command = [*_given(path, "info"), "-hide_banner"]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    told = run.stderr.decode(errors="replace")
    rate, duration = _RATE.search(told), _DURATION.search(told)
    hours, minutes, seconds = map(float, duration.groups() if duration else (0, 0, 0))
    return int(rate[1]) if rate else 0, 3600 * hours + 60 * minutes + seconds


def _given(path: Path, level: str = "error") -> list[str]:
    program = shutil.which("ffmpeg")
    if program is None:
        raise UserError(f"{path}: {path.suffix} needs ffmpeg, which is not there (or convert it to .wav or .flac)")
    # A playlist under another name shall not make it fetch anything.
    return [program, "-v", level, "-protocol_whitelist", "file,pipe", "-i", f"file:{path}"]


def _lines(told: IO[str]) -> list[str]:
    told.seek(0)
    return [line.strip() for line in told if line.strip()]


def _reason(lines: list[str]) -> str:
    """Say in a few words what ffmpeg says at the end of many."""
    if any("matches no streams" in line for line in lines):
        return "there is no sound in it"
    last = lines[-1] if lines else "ffmpeg does not say why"
    return last.rpartition("] ")[2].rpartition(": ")[2].rstrip(".").lower()
