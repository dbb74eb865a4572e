"""How far a spoken waveform is from a recording of the same words: mel-cepstral distortion and errors of pitch.

The frames of the two are put side by side by dynamic time warping, so that they need not be equally long. A distortion
depends on how spectra are made; numbers are comparable among those of this file, and not with other programs'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from sparq.errors import UserError
from sparq.speech.mel import LogMel
from sparq.speech.pitch import measure_pitch

COEFFICIENTS = 24  # c_1 … c_24; c_0, the loudness, is left out
_DECIBEL = 10 / math.log(10)
_SILENT = 40.0  # dB below its loudest frame, where a recording counts as silent
_GROSS = 0.2  # of the pitch, from where an error is gross (Rabiner et al. 1976)


@dataclasses.dataclass(frozen=True)
class SpeechDistance:
    """Distances over pairs of frames, silence of the recordings left out.

    Attributes:
        mel_cepstral_distortion: dB (Kubichek 1993), (10 / ln 10) · √(2 Σ_d (c_d − c'_d)²) on average.
        f0_rmse: root mean square error of pitch in cents, where both are voiced; NaN where that is nowhere.
        gross_pitch_error: percent of those pairs whose pitches differ by more than a fifth.
        voicing_error: percent of pairs of which one is voiced and the other not.
        frames: pairs that were compared.
    """

    mel_cepstral_distortion: float
    f0_rmse: float
    gross_pitch_error: float
    voicing_error: float
    frames: int


def log_mel(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Natural logarithms of 80 mel bands every 16 ms at 16 kHz, float64 [frames, 80]."""
    transform = LogMel(rate)
    short = transform.size - len(waveform)
    padded = np.pad(waveform, (0, max(0, short)))
    spectrum: np.ndarray = transform(torch.from_numpy(padded)[None])[0].T.double().numpy()
    return spectrum


def mel_cepstra(spectrum: np.ndarray) -> np.ndarray:
    """Cosine transform of log magnitudes [frames, bands], scaled so that log|H| = c_0 + Σ c_d cos(dω): [frames, 24]."""
    bands = spectrum.shape[1]
    angles = np.pi * np.arange(1, COEFFICIENTS + 1)[:, None] * (np.arange(bands) + 0.5) / bands
    cepstra: np.ndarray = spectrum @ (2 / bands * np.cos(angles)).T
    return cepstra


def distortions(cepstra: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distortion in dB of every frame [n, d] to every other [m, d]: [n, m]."""
    squares = np.square(cepstra).sum(1)[:, None] + np.square(others).sum(1) - 2 * cepstra @ others.T
    return _DECIBEL * np.sqrt(2 * squares.clip(min=0))


def warp(costs: np.ndarray) -> np.ndarray:
    """Find the cheapest path through costs [n, m], from corner to corner in steps of one frame of either or both.

    Returns:
        Pairs of frames, int64 [pairs, 2].
    """
    n, m = costs.shape
    # total[i + 1, j + 1] is the cheapest way to (i, j); all cells of an antidiagonal depend on the two before it.
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(n + m - 1):
        i = np.arange(max(0, diagonal - m + 1), min(n, diagonal + 1))
        j = diagonal - i
        total[i + 1, j + 1] = costs[i, j] + np.minimum(np.minimum(total[i, j + 1], total[i + 1, j]), total[i, j])
    i, j = n, m
    pairs = []
    while i and j:
        pairs.append((i - 1, j - 1))
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda step: total[step])
    return np.array(pairs[::-1])


def speech_distance(
    recordings: Sequence[np.ndarray], spoken: Sequence[np.ndarray], rate: int = 16000
) -> SpeechDistance:
    """Compare spoken waveforms with recordings of the same words, over all frames of all pairs.

    Args:
        recordings: float32 [samples] each.
        spoken: the same number.
        rate: samples per second.

    Raises:
        UserError: there are none, or not as many of one as of the other.
    """
    if len(recordings) != len(spoken) or not recordings:
        raise UserError(f"speech distance: {len(recordings)} recordings, but {len(spoken)} spoken waveforms")
    found = [_compare(recording, wave, rate) for recording, wave in zip(recordings, spoken, strict=True)]
    distortion, cents, differs = (np.concatenate(parts) for parts in zip(*found, strict=True))
    gross = np.abs(cents) > 1200 * math.log2(1 + _GROSS)
    return SpeechDistance(
        mel_cepstral_distortion=float(distortion.mean()),
        f0_rmse=float(np.sqrt(np.square(cents).mean())) if len(cents) else math.nan,
        gross_pitch_error=100 * float(gross.mean()) if len(cents) else math.nan,
        voicing_error=100 * float(differs.mean()),
        frames=len(distortion),
    )


def _compare(recording: np.ndarray, wave: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distortion of each pair of frames, error in cents where both are voiced, and where the voicing differs."""
    spectra = [log_mel(np.asarray(one, np.float32), rate) for one in (recording, wave)]
    costs = distortions(*(mel_cepstra(spectrum) for spectrum in spectra))
    pairs = warp(costs)
    loudness = _DECIBEL * np.log(np.exp(2 * spectra[0]).sum(1))
    i, j = pairs[loudness[pairs[:, 0]] > loudness.max() - _SILENT].T
    (pitch, voiced), (other, other_voiced) = (
        _pitch(one, len(spectrum), rate) for one, spectrum in zip((recording, wave), spectra, strict=True)
    )
    both = voiced[i] & other_voiced[j]
    cents = 1200 * np.log2(other[j[both]] / pitch[i[both]])
    return costs[i, j], cents, voiced[i] != other_voiced[j]


def _pitch(waveform: np.ndarray, frames: int, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Pitch and voicing of the frames of the spectrum."""
    hop = LogMel(rate).size // 4
    padded = np.pad(np.asarray(waveform, np.float32), (0, max(0, frames * hop - len(waveform))))
    pitch, voiced = measure_pitch(torch.from_numpy(padded)[None], rate, hop)
    return pitch[0, :frames].numpy(), voiced[0, :frames].numpy()
