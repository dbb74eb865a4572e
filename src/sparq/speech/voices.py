"""The teachers: voices that read text aloud, so that text alone becomes a speech corpus.

``hibari`` (female, 24 kHz, embedded) also tells when each word was spoken: its ONNX graph predicts how long each
phoneme lasts, and that inner tensor is read along with the outputs. ``piper-joe`` (male, 22.05 kHz) is a separate
program under the GPL: it is run, never imported.
"""

from __future__ import annotations

import abc
import dataclasses
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soxr

from sparq.assets import embedded
from sparq.errors import UserError
from sparq.speech.audio import RATE, load_audio

_DURATIONS = "/Clip_output_0"  # frames of each phoneme, inside hibari 0.2.1's graph
# Sounds come this much before the graph's durations say: over 80 sentences the mutual information between phonemes and
# clustered mel spectra peaks there (0.375 of the phonemes' entropy, against 0.227 with the times as they are).
_EARLIER = 0.055
_OUTPUTS = ["lh", "theta", "ln", "lr", "phi", "f0"]
_PIPER_SECONDS = 120.0  # after which the program is given up


class NothingToSayError(UserError):
    """A text has nothing in it that can be pronounced."""


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of the text and when it is spoken.

    Attributes:
        text: as written, with its punctuation.
        start: seconds from the start of the utterance.
        end: the same.
    """

    text: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """A text read aloud.

    Attributes:
        waveform: float32 ``[samples]`` at 16 kHz.
        words: the words of ``text.split()`` with their times; None where the voice cannot tell, or where it reads other
            words than are written ("1984" is three words).
    """

    waveform: np.ndarray
    words: tuple[Word, ...] | None


class Voice(abc.ABC):
    """A teacher.

    Attributes:
        name: what ``load_voice`` was given.
    """

    name: str

    @abc.abstractmethod
    def speak(self, text: str, speed: float = 1.0, seed: int = 0) -> Utterance:
        """Read a text aloud.

        Args:
            text: English, of any number of sentences.
            speed: 2 is twice as fast.
            seed: of the noise in the voice; piper has no seed and ignores it.

        Raises:
            NothingToSayError: there is nothing to pronounce in the text ("--").
            UserError: a speed outside 0.25 to 4.
        """


class Hibari(Voice):
    """The embedded voice of the hibari-tts package, on one thread."""

    name = "hibari"

    def __init__(self) -> None:
        embedded("hibari")  # says what to install
        import hibari

        from sparq.speech.moonshine import one_thread

        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise UserError("hibari: reading its word times needs a package; run: pip install onnx") from error
        self._voice = hibari.Hibari()
        model = onnx.load(self._voice.model_path)
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(_DURATIONS))
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), one_thread(), providers=["CPUExecutionProvider"]
        )

    def speak(self, text: str, speed: float = 1.0, seed: int = 0) -> Utterance:
        """See ``Voice.speak``."""
        from hibari import dsp

        _check_speed(speed)
        noise = np.random.default_rng(seed)
        waves: list[np.ndarray] = []
        spans: list[tuple[float, float]] = []
        offset = 0.0
        for sentence in self._voice.phonemize(text):
            phonemes = [p for p in sentence if p in self._voice.vocab]
            if not any(p.isalpha() for p in phonemes):
                continue
            ids = np.array([[0, *(self._voice.vocab[p] for p in phonemes), 0]], np.int64)
            given = {"ids": ids, "speed": np.array([speed], np.float32)}
            *outputs, frames = self._session.run([*_OUTPUTS, _DURATIONS], given)
            wave = dsp.synth(*(output[0] for output in outputs), noise)
            seconds = len(wave) / dsp.SR
            ends = np.maximum(np.cumsum(frames.reshape(-1)) / frames.sum() * seconds - _EARLIER, 0.0)
            spans += [(offset + start, offset + end) for start, end in _word_spans(phonemes, ends)]
            waves.append(wave)
            offset += seconds
        if not waves:
            raise NothingToSayError(f"nothing to pronounce in {text!r}")
        waveform = soxr.resample(np.concatenate(waves), dsp.SR, RATE).astype(np.float32)
        written = text.split()
        if len(written) != len(spans):
            return Utterance(waveform, None)
        return Utterance(waveform, tuple(Word(w, *span) for w, span in zip(written, spans, strict=True)))


def _word_spans(phonemes: list[str], ends: np.ndarray) -> list[tuple[float, float]]:
    """Return start and end of every run of phonemes between spaces that holds a letter.

    Args:
        phonemes: symbols of one sentence, with spaces between words.
        ends: seconds at which the pad before them, each of them, and the pad after them end: ``[len(phonemes) + 2]``.
    """
    spans = []
    start, spoken = float(ends[0]), False
    for i, symbol in enumerate(phonemes, start=1):
        if symbol == " ":
            if spoken:
                spans.append((start, float(ends[i - 1])))
            start, spoken = float(ends[i]), False
        spoken = spoken or symbol.isalpha()
    if spoken:
        spans.append((start, float(ends[len(phonemes)])))
    return spans


class Piper(Voice):
    """Piper's voice Joe, by the ``piper`` program of the piper-tts package."""

    name = "piper-joe"

    def __init__(self) -> None:
        self._model = embedded("piper-joe")
        beside = Path(sys.executable).with_name("piper")
        program = str(beside) if beside.is_file() else shutil.which("piper")
        if program is None:
            raise UserError("piper-joe: the piper program is not installed; run: pip install piper-tts==1.8.0")
        self._program = program

    def speak(self, text: str, speed: float = 1.0, seed: int = 0) -> Utterance:
        """See ``Voice.speak``."""
        del seed
        _check_speed(speed)
        if not any(c.isalnum() for c in text):
            raise NothingToSayError(f"nothing to pronounce in {text!r}")
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "speech.wav"
            command = [self._program, "-m", str(self._model), "-f", str(wav), "--length-scale", str(1.0 / speed)]
            try:
                run = subprocess.run(
                    command, input=" ".join(text.split()), capture_output=True, text=True, check=False,
                    timeout=_PIPER_SECONDS,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise UserError(f"piper-joe: took more than {_PIPER_SECONDS:.0f} s to read {text[:60]!r}") from error
            if run.returncode or not wav.is_file():
                reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise UserError(f"piper-joe: {self._program} failed ({reason})")
            return Utterance(load_audio(wav), None)


def _check_speed(speed: float) -> None:
    if not 0.25 <= speed <= 4.0:
        raise UserError(f"speed: {speed} is not between 0.25 and 4")


_VOICES: dict[str, type[Voice]] = {"hibari": Hibari, "piper-joe": Piper}


def load_voice(name: str = "hibari") -> Voice:
    """Load a teacher by name: ``hibari`` or ``piper-joe``.

    Raises:
        UserError: no such voice, or a package is missing (the line says which command installs it).
    """
    if name not in _VOICES:
        raise UserError(f"{name}: no such voice; there are {', '.join(_VOICES)}")
    return _VOICES[name]()
