"""Recordings brought to one level, so that what is understood does not depend on how loud they are.

What tells speech, and the encoder's first layer, know levels: of a person's words a model mishears 21 % as they were
recorded, 25 % when they are 30 dB quieter, and half of them 40 dB quieter (results/by_hand.json, level). What counts is
the loudest parts, for they are speech, and how long a recording is silent besides says nothing.
"""

from __future__ import annotations

import numpy as np

from sparq.speech.audio import RATE

LEVEL = -18.0
"""Of the loudest second, in dB of its power below full scale; from -10 to -26 dB no level is better than another."""

_SILENT = -80.0  # dB, below which there is nothing but the noise of 16 bits
_FRAME = 512  # samples, 32 ms
_LOUDEST = RATE // _FRAME  # frames, about a second; of shorter recordings half


def levelled(waveform: np.ndarray) -> np.ndarray:
    """Bring a recording to :data:`LEVEL`; what is silent stays as it is.

    Args:
        waveform: float32 ``[samples]`` at 16 kHz.

    Returns:
        The same times one number; values may exceed 1.
    """
    frames = waveform[: len(waveform) // _FRAME * _FRAME].reshape(-1, _FRAME)
    if not len(frames):
        return waveform
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    loudest = np.partition(power, -(count := min(_LOUDEST, -(-len(power) // 2))))[-count:].mean()
    level = 10 * np.log10(loudest + 1e-30)
    return waveform if level < _SILENT else waveform * np.float32(10 ** ((LEVEL - level) / 20))
