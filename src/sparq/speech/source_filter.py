"""A source and a filter: pulses at a pitch, and noise, shaped frame by frame in the STFT domain.

Wang et al. 2019, "Neural source-filter waveform models"; Engel et al. 2020, "DDSP". A sample depends on the frames
around it alone, once the phase of the pulses before it is known and the noise is drawn in order. So a part of a
sequence can be rendered by itself, and equals that part of the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparq.speech.pitch import pulse_train

REACH = 4
"""Frames on either side that a sample hears: two by the windows that overlap in it, two by what lies under those."""

_LOUDEST = 4.0  # the largest log magnitude of a filter; keeps exp() finite early in training
_BLOCK = 16  # torch draws normal numbers in blocks of 16: a number of whole blocks begins every longer one


class Noise:
    """White noise, the same every time, so that what is spoken depends on nothing but the units."""

    def __init__(self) -> None:
        self._random = torch.Generator().manual_seed(0)
        self._drawn = torch.zeros(0)

    def take(self, count: int) -> Tensor:
        """Give the next samples, float32 [count], however many are taken at a time."""
        missing = count - len(self._drawn)
        if missing > 0:
            more = torch.randn(-(-missing // _BLOCK) * _BLOCK, generator=self._random)
            self._drawn = torch.cat([self._drawn, more])
        taken, self._drawn = self._drawn[:count], self._drawn[count:]
        return taken


class SourceFilter(nn.Module):
    """Pulses and noise through a filter each.

    Args:
        size: samples of a window; the hop is a quarter.
        rate: samples per second.
    """

    def __init__(self, size: int, rate: int) -> None:
        super().__init__()
        self.size, self.hop, self.rate = size, size // 4, rate
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(size), persistent=False)

    def forward(
        self,
        log_magnitude: Tensor,
        pitch: Tensor,
        mask: Tensor | None = None,
        *,
        cycles: float = 0.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Render frames.

        Args:
            log_magnitude: [batch, size + 2, frames], of the pulses' filter and the noise's.
            pitch: Hz [batch, frames].
            mask: [batch, 1, frames], which frames count, or None for all.
            cycles: of the pulses before the first frame.
            noise: float [frames · hop]; None for what begins every sequence.

        Returns:
            float [batch, frames · hop] in −1 … 1. The first and last ``REACH`` frames of a part of a sequence are not
            what they are in the whole.
        """
        size, hop = self.size, self.hop
        batch, _, frames = log_magnitude.shape
        drawn = Noise().take(frames * hop) if noise is None else noise
        pulses = pulse_train(pitch.detach(), self.rate, hop, cycles)
        sources = torch.stack([pulses, drawn.to(pitch)[None].expand(batch, -1)], dim=1)
        if mask is not None:
            sources = sources * mask.repeat_interleave(hop, dim=2)
        edge = (size - hop) // 2
        sources = functional.pad(sources, (edge, edge)).flatten(0, 1)
        spectrum = torch.stft(sources, size, hop, window=self.window, center=False, return_complex=True)
        # float32 at least: half precision has no complex products
        magnitude = log_magnitude.to(torch.promote_types(log_magnitude.dtype, torch.float32))
        filters = magnitude.clamp(max=_LOUDEST).exp().unflatten(1, (2, -1))
        shaped = (spectrum.unflatten(0, (batch, 2)) * filters).sum(1)
        pieces = torch.fft.irfft(shaped, n=size, dim=1) * self.window[:, None]
        if mask is not None:
            pieces = pieces * mask
        wave = functional.fold(pieces, (1, frames * hop + 2 * edge), (1, size), stride=(1, hop))[:, 0, 0]
        # The square of a Hann window that overlaps fourfold sums to 3/2; the edges keep their natural fade.
        return (wave[:, edge : edge + frames * hop] / 1.5).clamp(-1, 1)
