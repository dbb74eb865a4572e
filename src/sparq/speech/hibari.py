"""Voices that are given phonemes and say how long each lasted: hibari, and what Kokoro shares with it.

hibari (female, 24 kHz, in the hibari-tts package) is a small copy of one of Kokoro's voices, with Kokoro's phonemes.
Its ONNX graph predicts how long each phoneme lasts, and that inner tensor is read along with the outputs.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import onnxruntime
import soxr

from sparq.errors import UserError
from sparq.speech.audio import RATE
from sparq.speech.moonshine import one_thread
from sparq.speech.phones import PAUSE, Phone, phonemiser, timed_phones
from sparq.speech.voice import NothingToSayError, Utterance, Voice, Word

_RATE = 24000  # of both
# Sounds come this much before the graph's durations say: over 80 sentences the mutual information between phonemes and
# clustered mel spectra peaks there (0.375 of the phonemes' entropy, against 0.227 with the times as they are). By the
# energy of vowels it is 0.06 for hibari, and 0.06 to 0.07 for three of Kokoro's speakers, whose durations it learnt.
_EARLIER = 0.055
_OUTPUTS = ["lh", "theta", "ln", "lr", "phi", "f0"]


def with_output(model: Any, tensor: str) -> onnxruntime.InferenceSession:
    """Open an ONNX model on one thread, with an inner tensor as its last output."""
    import onnx

    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    return onnxruntime.InferenceSession(model.SerializeToString(), one_thread(), providers=["CPUExecutionProvider"])


def needs_onnx(name: str) -> None:
    """Raise a UserError if the package that reads a voice's word times is not there."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise UserError(f"{name}: reading its word times needs a package; run: pip install onnx") from error


class PhonemeVoice(Voice):
    """A voice that is given the phonemes of hibari's phonemiser.

    Args:
        name: of the voice.
        british: whether words are pronounced as in England.
    """

    def __init__(self, name: str, *, british: bool = False) -> None:
        self.name = name
        self._hibari = phonemiser(british=british)
        needs_onnx(name)

    @abc.abstractmethod
    def _say(self, ids: np.ndarray, speed: float, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Speak one sentence.

        Args:
            ids: int64 ``[1, phonemes + 2]``, padded by 0 on both sides.
            speed: 2 is twice as fast.
            noise: for the noise in the voice.

        Returns:
            The waveform ``[samples]`` at 24 kHz, and how long each of the ids lasts, in any unit: ``[phonemes + 2]``.
        """

    def _speak(self, text: str, speed: float, seed: int) -> Utterance:
        noise = np.random.default_rng(seed)
        waves: list[np.ndarray] = []
        spans: list[tuple[float, float]] = []
        phones: list[Phone] = []
        offset = 0.0
        for sentence in self._hibari.phonemize(text):
            phonemes = [p for p in sentence if p in self._hibari.vocab]
            if not any(p.isalpha() for p in phonemes):
                continue
            ids = np.array([self._hibari.ids(phonemes)], np.int64)
            wave, lengths = self._say(ids, speed, noise)
            seconds = len(wave) / _RATE
            ends = np.maximum(np.cumsum(lengths) / lengths.sum() * seconds - _EARLIER, 0.0)
            phones += timed_phones([PAUSE, *phonemes, PAUSE], offset + ends)
            spans += [(offset + start, offset + end) for start, end in _word_spans(phonemes, ends)]
            waves.append(wave)
            offset += seconds
        if not waves:
            raise NothingToSayError(f"nothing to pronounce in {text!r}")
        waveform = soxr.resample(np.concatenate(waves), _RATE, RATE).astype(np.float32)
        written = text.split()
        if len(written) != len(spans):
            return Utterance(waveform, None, tuple(phones))
        words = tuple(Word(w, *span) for w, span in zip(written, spans, strict=True))
        return Utterance(waveform, words, tuple(phones))


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


class Hibari(PhonemeVoice):
    """The embedded voice of the hibari-tts package, on one thread."""

    def __init__(self, name: str = "hibari") -> None:
        super().__init__(name)
        import onnx

        # "/Clip_output_0": frames of each phoneme, inside the graph of hibari 0.2.1.
        self._session = with_output(onnx.load(self._hibari.model_path), "/Clip_output_0")

    def _say(self, ids: np.ndarray, speed: float, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        from hibari import dsp

        *outputs, frames = self._session.run(None, {"ids": ids, "speed": np.array([speed], np.float32)})
        return dsp.synth(*(output[0] for output in outputs), noise), frames.reshape(-1)
