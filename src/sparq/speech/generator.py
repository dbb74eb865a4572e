"""The vocoder's generator: a HiFi-GAN whose input is unit embeddings.

It is the paper's (appendix E.3; Polyak et al. 2021, "Speech Resynthesis from Discrete Disentangled
Self-Supervised Representations"; Kong et al. 2020, "HiFi-GAN"). Its upsampling rates multiply to the encoder's hop.
The small configuration stops upsampling early, as iSTFTNet does (Kaneko et al. 2022), and ends in a source and a filter
(Wang et al. 2019, "Neural source-filter waveform models"; Engel et al. 2020, "DDSP"): it predicts a pitch, and shapes
pulses at that pitch and noise in the STFT domain. Nothing has to be learnt about phase, so speech is intelligible
after minutes on one CPU core, and it speaks a hundred times faster than real time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from sparq.errors import UserError
from sparq.speech.pitch import pulse_train

_SLOPE = 0.1  # of every leaky ReLU, as in HiFi-GAN
_LOUDEST = 4.0  # the largest log magnitude of a filter; keeps exp() finite early in training
_QUIET = -5.0  # log magnitude at which filters start
_MIDDLE_PITCH = 150.0  # Hz, between the voices of women and men, from where the predicted pitch starts


_EXPECTED = {
    "units": "expected a positive number",
    "embedding": "expected a positive number",
    "channels": "expected a number that can be halved at every upsampling",
    "upsample_rates": "expected positive numbers",
    "upsample_kernels": "expected one for each rate, larger than it by an even number",
    "resblock_kernels": "expected odd numbers",
    "resblock_dilations": "expected positive numbers",
    "filter_size": "expected 0 or a multiple of 8",
    "speaker_dim": "expected 0 or more",
    "rate": "expected a positive number",
}


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """The shape of a unit HiFi-GAN; the defaults are the paper's (E.3, hop 320).

    Attributes:
        units: how many units the codebook has.
        embedding: size of a unit's embedding.
        channels: channels before the first upsampling; every upsampling halves them.
        upsample_rates: by how much each transposed convolution upsamples.
        upsample_kernels: its kernel; kernel − rate must be even and not negative.
        resblock_kernels: kernels of the parallel residual blocks after each upsampling (ResBlock 1).
        resblock_dilations: dilations inside each residual block.
        filter_size: window of the source-filter ending in samples (its hop is a quarter); 0 ends in a waveform as
            HiFi-GAN does.
        speaker_dim: size of a speaker embedding that is concatenated to every unit's; 0 for one voice.
        rate: samples per second of the waveform.
    """

    units: int = 200
    embedding: int = 128
    channels: int = 512
    upsample_rates: tuple[int, ...] = (5, 4, 4, 2, 2)
    upsample_kernels: tuple[int, ...] = (11, 8, 8, 4, 4)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[int, ...] = (1, 3, 5)
    filter_size: int = 0
    speaker_dim: int = 0
    rate: int = 16000

    def __post_init__(self) -> None:
        for name in ("upsample_rates", "upsample_kernels", "resblock_kernels", "resblock_dilations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        rates, kernels = self.upsample_rates, self.upsample_kernels
        wrong = {
            "units": self.units < 1,
            "embedding": self.embedding < 1,
            "channels": self.channels < 1 or self.channels % 2 ** len(rates) > 0,
            "upsample_rates": not rates or min(rates) < 1,
            "upsample_kernels": len(kernels) != len(rates)
            or any(k < r or (k - r) % 2 for k, r in zip(kernels, rates, strict=True)),
            "resblock_kernels": not self.resblock_kernels or any(k < 1 or k % 2 == 0 for k in self.resblock_kernels),
            "resblock_dilations": not self.resblock_dilations or min(self.resblock_dilations) < 1,
            "filter_size": self.filter_size < 0 or self.filter_size % 8 > 0,
            "speaker_dim": self.speaker_dim < 0,
            "rate": self.rate < 1,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                value = getattr(self, name)
                raise UserError(
                    f"vocoder {name}={list(value) if isinstance(value, tuple) else value}: {_EXPECTED[name]}"
                )

    @property
    def hop(self) -> int:
        """Samples of waveform per unit."""
        return math.prod(self.upsample_rates) * (self.filter_size // 4 or 1)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> VocoderConfig:
        """Give a named configuration, with changes.

        Names: ``paper`` (E.3, hop 320, for HuBERT), ``paper-384`` (the same for Moonshine's hop), ``small`` (hop 384).

        Raises:
            UserError: unknown name.
        """
        if name not in _PRESETS:
            raise UserError(f"unknown vocoder preset {name!r}: expected one of {', '.join(_PRESETS)}")
        return dataclasses.replace(_PRESETS[name], **changes)


_PRESETS = {
    "paper": VocoderConfig(),
    "paper-384": VocoderConfig(upsample_rates=(6, 4, 4, 2, 2), upsample_kernels=(12, 8, 8, 4, 4)),
    "small": VocoderConfig(
        channels=208,
        upsample_rates=(3, 2),
        upsample_kernels=(7, 4),
        resblock_kernels=(3, 7),
        filter_size=256,
    ),
}


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Silence what lies beyond a sequence's end, so that padding changes nothing before it."""
    return x if mask is None else x * mask


class ResidualBlock(nn.Module):
    """HiFi-GAN's ResBlock 1: pairs of a dilated and a plain convolution, each pair with a skip connection."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.plain = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [batch, channels, time] to the same shape; ``mask`` is [batch, 1, time]."""
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            y = dilated(_masked(functional.leaky_relu(x, _SLOPE), mask))
            x = x + plain(_masked(functional.leaky_relu(y, _SLOPE), mask))
        return x


class UnitGenerator(nn.Module):
    """The HiFi-GAN generator over unit embeddings: units [batch, frames] to waveforms [batch, frames · hop]."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.units, config.embedding)
        self.first = nn.Conv1d(config.embedding + config.speaker_dim, config.channels, 7, padding=3)
        self.upsamplings = nn.ModuleList()
        self.blocks = nn.ModuleList()
        width = config.channels
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
            padding = (kernel - rate) // 2
            self.upsamplings.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding))
            width //= 2
            self.blocks.append(
                nn.ModuleList(ResidualBlock(width, k, config.resblock_dilations) for k in config.resblock_kernels)
            )
        if config.filter_size:
            # log magnitudes of the filters of pulses and noise, and log pitch
            self.last = nn.Conv1d(width, config.filter_size + 3, 7, padding=3)
            start = torch.full((config.filter_size + 3,), _QUIET)
            start[-1] = math.log(_MIDDLE_PITCH)
            self.last.bias = nn.Parameter(start)
        else:
            self.last = nn.Conv1d(width, 1, 7, padding=3)
            for layer in (*self.upsamplings, *self.blocks.modules(), self.last):
                if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
                    nn.init.normal_(layer.weight, 0.0, 0.01)
        self.window: Tensor
        self.register_buffer("window", torch.hann_window(max(1, config.filter_size)), persistent=False)
        for module in list(self.modules()):
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
                weight_norm(module)

    def forward(self, units: Tensor, lengths: Tensor | None = None, speaker: Tensor | None = None) -> Tensor:
        """Generate waveforms.

        Args:
            units: int64 [batch, frames], one unit per frame (repeats not merged).
            lengths: int64 [batch], frames that count; the samples before a sequence's end are those it would give
                alone, the samples after it mean nothing.
            speaker: [batch, speaker_dim]; needed exactly if the configuration has a ``speaker_dim``.

        Returns:
            float [batch, frames · hop] in −1 … 1.
        """
        features, mask = self._features(units, lengths, speaker)
        if not self.config.filter_size:
            return torch.tanh(features[:, 0])
        return self._filtered(features[:, :-1], features[:, -1].exp(), mask)

    def forced(
        self, units: Tensor, pitch: Tensor, voiced: Tensor, speaker: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Generate waveforms at the pitch of the recordings, for training a source-filter vocoder.

        Args:
            units: int64 [batch, frames].
            pitch: Hz, float [batch, frames · filter frames per unit].
            voiced: bool, where that pitch counts; elsewhere the predicted one is used.
            speaker: as in ``forward``.

        Returns:
            Waveforms [batch, frames · hop], and the predicted log pitch in the shape of ``pitch``.
        """
        features, mask = self._features(units, None, speaker)
        log_pitch = features[:, -1]
        pitch = torch.where(voiced, pitch, log_pitch.detach().exp())
        return self._filtered(features[:, :-1], pitch, mask), log_pitch

    def _features(self, units: Tensor, lengths: Tensor | None, speaker: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run all convolutions; returns the last one's output and its mask."""
        if (speaker is not None) != (self.config.speaker_dim > 0):
            raise UserError(f"this vocoder has speaker_dim={self.config.speaker_dim}: a speaker goes with more than 0")
        x = self.embedding(units).transpose(1, 2)
        if speaker is not None:
            x = torch.cat([x, speaker[:, :, None].expand(-1, -1, x.shape[2])], dim=1)
        mask = None
        if lengths is not None:
            mask = (torch.arange(units.shape[1], device=units.device) < lengths[:, None]).to(x.dtype)[:, None]
        x = self.first(_masked(x, mask))
        for rate, upsampling, parallel in zip(self.config.upsample_rates, self.upsamplings, self.blocks, strict=True):
            x = upsampling(_masked(functional.leaky_relu(x, _SLOPE), mask))
            mask = None if mask is None else mask.repeat_interleave(rate, dim=2)
            assert isinstance(parallel, nn.ModuleList)
            x = torch.stack([block(x, mask) for block in parallel]).mean(0)
        # HiFi-GAN's code leaves the slope of this one leaky ReLU at torch's default.
        return self.last(_masked(functional.leaky_relu(x), mask)), mask

    def _filtered(self, log_magnitude: Tensor, pitch: Tensor, mask: Tensor | None) -> Tensor:
        """Shape pulses and noise, frame by frame in the STFT domain, and overlap and add the frames.

        Args:
            log_magnitude: [batch, size + 2, frames], of the pulses' filter and the noise's.
            pitch: Hz [batch, frames].
            mask: [batch, 1, frames] or none.
        """
        size, hop = self.config.filter_size, self.config.filter_size // 4
        batch, _, frames = log_magnitude.shape
        # The same noise every time: what is spoken depends on nothing but the units.
        random = torch.Generator().manual_seed(0)
        noise = torch.randn(frames * hop, generator=random).to(pitch)[None].expand(batch, -1)
        sources = torch.stack([pulse_train(pitch.detach(), self.config.rate, hop), noise], dim=1)
        if mask is not None:
            sources = sources * mask.repeat_interleave(hop, dim=2)
        edge = (size - hop) // 2
        sources = functional.pad(sources, (edge, edge)).flatten(0, 1)
        spectrum = torch.stft(sources, size, hop, window=self.window, center=False, return_complex=True)
        filters = log_magnitude.float().clamp(max=_LOUDEST).exp().unflatten(1, (2, -1))
        shaped = (spectrum.unflatten(0, (batch, 2)) * filters).sum(1)
        pieces = _masked(torch.fft.irfft(shaped, n=size, dim=1) * self.window[:, None], mask)
        wave = functional.fold(pieces, (1, frames * hop + 2 * edge), (1, size), stride=(1, hop))[:, 0, 0]
        # The square of a Hann window that overlaps fourfold sums to 3/2; the edges keep their natural fade.
        return (wave[:, edge : edge + frames * hop] / 1.5).clamp(-1, 1)


def fuse_weight_norm(module: nn.Module) -> None:
    """Turn weight-normalised layers into plain ones, in place: the same function, fewer operations."""
    for layer in module.modules():
        if is_parametrized(layer, "weight"):
            remove_parametrizations(layer, "weight")
