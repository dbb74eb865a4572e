"""Log-mel spectrograms, the ear of the vocoder's training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

_FLOOR = 1e-5  # magnitudes below this are silence (HiFi-GAN)


class LogMel(nn.Module):
    """Log-mel spectrogram as in HiFi-GAN: Hann window, hop of a quarter window, magnitude, Slaney's mel filters.

    Args:
        rate: samples per second.
        window: samples per window.
        mels: mel bands from 0 Hz to half the rate.
    """

    def __init__(self, rate: int, window: int = 1024, mels: int = 80) -> None:
        super().__init__()
        self.size = window
        filters = mel_filter_bank(window // 2 + 1, mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
        self.filters: Tensor
        self.window: Tensor
        self.register_buffer("filters", torch.from_numpy(filters.T).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms [batch, samples] to log-mel spectrograms [batch, mels, frames]."""
        hop = self.size // 4
        # Padding by hand puts frame t over samples t·hop …, without the centring of torch.stft.
        padded = nn.functional.pad(waveform[:, None], ((self.size - hop) // 2,) * 2, mode="reflect")[:, 0]
        spectrum = torch.stft(padded, self.size, hop, window=self.window, center=False, return_complex=True)
        # abs() has no gradient at 0; the small constant gives it one.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
        return (self.filters @ magnitude).clamp(min=_FLOOR).log()


class MelLoss(nn.Module):
    """Mean absolute difference of log-mel spectrograms, averaged over windows.

    One window of 1024 is HiFi-GAN's loss. More windows hear more of a waveform without any discriminator: short ones
    when something happens, long ones at which pitch.
    """

    def __init__(self, rate: int, windows: Iterable[int] = (1024,)) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(LogMel(rate, window, max(8, window * 80 // 1024)) for window in windows)

    def forward(self, generated: Tensor, real: Tensor) -> Tensor:
        """Compare waveforms [batch, samples] of one shape."""
        distances = [(transform(generated) - transform(real)).abs().mean() for transform in self.transforms]
        return torch.stack(distances).mean()
