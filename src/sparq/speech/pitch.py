"""Pitch: measured in recorded speech, and turned into the pulses of a voice."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_LOWEST, _HIGHEST = 60.0, 500.0  # Hz, of speaking voices
_WINDOW_SECONDS = 0.032
_VOICED = 0.7  # normalised cross-correlation from which a frame counts as voiced
_FIRST = 0.9  # the shortest lag that reaches this share of the best one is the period, against octave errors
_QUIET = 1e-3  # root mean square below which nothing is voiced


def measure_pitch(waveform: Tensor, rate: int, hop: int) -> tuple[Tensor, Tensor]:
    """Measure pitch by normalised cross-correlation (Talkin 1995, RAPT, without its dynamic programming).

    Args:
        waveform: float [batch, samples].
        rate: samples per second.
        hop: samples per frame; frame t is centred on the middle of its hop.

    Returns:
        Pitch in Hz, float [batch, samples // hop], and which frames are voiced, bool of the same shape; the pitch of
        an unvoiced frame means nothing.
    """
    shortest, longest = math.floor(rate / _HIGHEST), math.ceil(rate / _LOWEST)
    size = round(_WINDOW_SECONDS * rate)
    span = size + longest
    before = (span - hop) // 2
    # Voices are periodic below 2 kHz, and a period that is no whole number of samples disturbs only what is above.
    smooth = rate // 4000 * 2 + 1
    low = functional.avg_pool1d(waveform[:, None], smooth, 1, smooth // 2)[:, 0]
    padded = functional.pad(low, (before, span))
    frames = padded.unfold(1, span, hop)[:, : waveform.shape[1] // hop]
    transform = 2 ** math.ceil(math.log2(span + size))
    spectrum = torch.fft.rfft(frames, transform)
    start = torch.fft.rfft(frames[..., :size], transform)
    correlation = torch.fft.irfft(start.conj() * spectrum, transform)[..., : longest + 1]
    energy = functional.pad(frames.square().cumsum(-1), (1, 0))
    energies = energy[..., size : size + longest + 1] - energy[..., : longest + 1]
    norm = (energies[..., :1] * energies).clamp(min=0).sqrt() + 1e-9
    similar = (correlation / norm)[..., shortest:]
    peak = functional.pad((similar[..., 1:-1] >= similar[..., :-2]) & (similar[..., 1:-1] >= similar[..., 2:]), (1, 1))
    peaks = torch.where(peak, similar, -1.0)
    best = peaks.amax(-1, keepdim=True)
    lag = (peaks >= _FIRST * best.clamp(min=0)).int().argmax(-1, keepdim=True).clamp(1, similar.shape[-1] - 2)
    left, middle, right = (similar.gather(-1, lag + shift)[..., 0] for shift in (-1, 0, 1))
    curvature = (2 * middle - left - right).clamp(min=1e-6)
    offset = ((right - left) / (2 * curvature)).clamp(-0.5, 0.5)
    pitch = rate / (lag[..., 0] + shortest + offset)
    voiced = (best[..., 0] >= _VOICED) & (energies[..., 0] >= size * _QUIET**2)
    return pitch, voiced


def pulse_train(pitch: Tensor, rate: int, hop: int, cycles: float = 0.0) -> Tensor:
    """Sum all harmonics of a pitch below half the sampling rate, at equal strength and unit power.

    Args:
        pitch: Hz, float [batch, frames].
        rate: samples per second.
        hop: samples per frame.
        cycles: what went by before the first frame.

    Returns:
        float [batch, frames · hop], the closed form of Σ_k cos(kφ) (Dirichlet's kernel).
    """
    hertz = pitch.repeat_interleave(hop, dim=1)
    # float64, for the phase of a long utterance and of its fortieth harmonic
    phase = 2 * math.pi * (((hertz.double() / rate).cumsum(1) + cycles) % 1)
    harmonics = (rate / 2 / hertz).floor().clamp(min=1).double()
    half = torch.sin(phase / 2)
    at_pulse = half.abs() < 1e-6
    kernel = torch.sin((harmonics + 0.5) * phase) / (2 * torch.where(at_pulse, 1.0, half)) - 0.5
    return (torch.where(at_pulse, harmonics, kernel) * (2 / harmonics).sqrt()).to(pitch.dtype)
