"""Voice activity: how likely someone speaks in every 32 ms of a recording.

``silero`` is the network of the silero-vad package, which tells speech from music, noise and breath. ``loudness``
takes all that stands out of the background for speech; it needs no package, and hears what is not quite speech:
whispers, singing, test signals.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from sparq.assets import embedded
from sparq.errors import UserError

FRAME = 512
"""Samples of a frame, 32 ms."""

_CONTEXT = 64  # samples before a frame that Silero sees with it
_BLOCK = 1024  # frames in one call of the network, 33 s
_STATE = (1, 1, 128)
_SILENT = -65.0  # dB below full scale; nothing under it is taken for speech
_SOFTNESS = 6.0  # dB over which loudness turns from background into speech


class Detector(abc.ABC):
    """Tells where someone speaks.

    Attributes:
        name: what ``load_detector`` was given.
    """

    name: str

    @abc.abstractmethod
    def probabilities(self, waveform: np.ndarray) -> np.ndarray:
        """Give the probability of speech, float32 ``[frames]``, of a waveform float32 ``[samples]`` at 16 kHz.

        The last frame is padded with silence.
        """


class Silero(Detector):
    """The network of the silero-vad package, on one thread; it remembers what it heard before a frame."""

    name = "silero"

    def __init__(self) -> None:
        import onnxruntime

        from sparq.speech.moonshine import one_thread

        path = embedded("silero-vad")
        self._session: Any = onnxruntime.InferenceSession(str(path), one_thread(), providers=["CPUExecutionProvider"])

    def probabilities(self, waveform: np.ndarray) -> np.ndarray:
        """See ``Detector.probabilities``."""
        frames = _framed(waveform)
        before = np.zeros((len(frames), _CONTEXT), np.float32)
        before[1:] = frames[:-1, -_CONTEXT:]
        seen = np.concatenate([before, frames], axis=1)
        hidden, cell = np.zeros(_STATE, np.float32), np.zeros(_STATE, np.float32)
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(seen), _BLOCK):
            given = {"input": seen[start : start + _BLOCK], "h": hidden, "c": cell}
            speech, hidden, cell = self._session.run(["speech_probs", "hn", "cn"], given)
            found.append(speech.reshape(-1))
        return np.concatenate(found)


class Loudness(Detector):
    """Level above a threshold a third of the way, in dB, from the background to the voice."""

    name = "loudness"

    def probabilities(self, waveform: np.ndarray) -> np.ndarray:
        """See ``Detector.probabilities``."""
        level = 10 * np.log10(np.square(_framed(waveform), dtype=np.float64).mean(axis=1) + 1e-12)
        background, voice = np.percentile(level, (5, 95)) if level.size else (0.0, 0.0)
        # With little silence the background is speech itself, and with much noise it is close below it.
        bounded = np.clip(background + (voice - background) / 3, voice - 40, voice - 20)
        threshold = max(float(bounded), _SILENT)
        return (1 / (1 + np.exp((threshold - level) / _SOFTNESS))).astype(np.float32)


def _framed(waveform: np.ndarray) -> np.ndarray:
    """Cut into frames, float32 ``[frames, FRAME]``, the last padded with zeros."""
    frames = np.zeros((-(-len(waveform) // FRAME), FRAME), np.float32)
    frames.reshape(-1)[: len(waveform)] = waveform
    return frames


DETECTORS: dict[str, type[Detector]] = {"silero": Silero, "loudness": Loudness}


def load_detector(name: str = "silero") -> Detector:
    """Load a detector by name: ``silero`` or ``loudness``.

    Raises:
        UserError: no such detector, or its package is missing (the line says which command installs it).
    """
    if name not in DETECTORS:
        raise UserError(f"{name}: no such detector of speech; there are {', '.join(DETECTORS)}")
    return DETECTORS[name]()
