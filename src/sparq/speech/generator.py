"""The vocoder's generator: a HiFi-GAN whose input is unit embeddings.

It is the paper's (appendix E.3; Polyak et al. 2021, "Speech Resynthesis from Discrete Disentangled
Self-Supervised Representations"; Kong et al. 2020, "HiFi-GAN"). Its upsampling rates multiply to the encoder's hop.
The small configuration stops upsampling early, as iSTFTNet does (Kaneko et al. 2022), and ends in a source and a filter
(:mod:`sparq.speech.source_filter`): it predicts a pitch, and shapes pulses at that pitch and noise in the STFT domain.
Nothing has to be learnt about phase, so speech is intelligible after minutes on one CPU core, and it speaks a hundred
times faster than real time.

For many voices a speaker embedding scales and shifts the channels of every stage (FiLM: Perez et al. 2018), the pitch's
among them. At the start of a training it does neither, so that what all voices share is learnt first.
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
from sparq.speech.source_filter import SourceFilter

_SLOPE = 0.1  # of every leaky ReLU, as in HiFi-GAN
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
        speaker_dim: size of the speaker embedding that chooses the voice; 0 for one voice.
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
        self.first = nn.Conv1d(config.embedding, config.channels, 7, padding=3)
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
        self.films = nn.ModuleList()
        if config.speaker_dim:
            widths = [config.channels // 2**i for i in range(len(config.upsample_rates) + 1)]
            self.films.extend(nn.Linear(config.speaker_dim, 2 * width) for width in widths)
            for parameter in self.films.parameters():
                nn.init.zeros_(parameter)
        self.source_filter = SourceFilter(config.filter_size, config.rate) if config.filter_size else None
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
        features, mask = self.features(units, lengths, speaker)
        if self.source_filter is None:
            return torch.tanh(features[:, 0])
        return self.source_filter(features[:, :-1], features[:, -1].exp(), mask)

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
        assert self.source_filter is not None
        features, _ = self.features(units, None, speaker)
        log_pitch = features[:, -1]
        pitch = torch.where(voiced, pitch, log_pitch.detach().exp())
        return self.source_filter(features[:, :-1], pitch), log_pitch

    def features(
        self, units: Tensor, lengths: Tensor | None = None, speaker: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run all convolutions; arguments as in ``forward``.

        Returns:
            The last one's output, float [batch, channels, frames · upsampling], and its mask [batch, 1, ...] or None.
            A feature depends on the units up to ``context`` frames away.
        """
        if (speaker is not None) != (self.config.speaker_dim > 0):
            raise UserError(f"this vocoder has speaker_dim={self.config.speaker_dim}: a speaker goes with more than 0")
        x = self.embedding(units).transpose(1, 2)
        mask = None
        if lengths is not None:
            mask = (torch.arange(units.shape[1], device=units.device) < lengths[:, None]).to(x.dtype)[:, None]
        x = self._in_the_voice(self.first(_masked(x, mask)), 0, speaker)
        stages = zip(self.config.upsample_rates, self.upsamplings, self.blocks, strict=True)
        for stage, (rate, upsampling, parallel) in enumerate(stages, start=1):
            x = upsampling(_masked(functional.leaky_relu(x, _SLOPE), mask))
            x = self._in_the_voice(x, stage, speaker)
            mask = None if mask is None else mask.repeat_interleave(rate, dim=2)
            assert isinstance(parallel, nn.ModuleList)
            x = torch.stack([block(x, mask) for block in parallel]).mean(0)
        # HiFi-GAN's code leaves the slope of this one leaky ReLU at torch's default.
        return self.last(_masked(functional.leaky_relu(x), mask)), mask

    def _in_the_voice(self, x: Tensor, stage: int, speaker: Tensor | None) -> Tensor:
        """Scale and shift channels [batch, channels, time] as the speaker embedding says."""
        if speaker is None:
            return x
        # The entries of an embedding of length 1 are of the order of 1/√dimension; a layer wants them around 1.
        scale, shift = self.films[stage](speaker * self.config.speaker_dim**0.5)[..., None].chunk(2, dim=1)
        return x * (1 + scale) + shift

    @property
    def context(self) -> int:
        """Frames on either side that a feature depends on: the receptive field of all convolutions."""
        config = self.config
        # Of a residual block: each pair of convolutions in turn, the widest kernel of those side by side.
        block = max(
            sum((dilation + 1) * (kernel - 1) // 2 for dilation in config.resblock_dilations)
            for kernel in config.resblock_kernels
        )
        reach = 3  # of the last convolution, in its own steps
        for rate, kernel in zip(reversed(config.upsample_rates), reversed(config.upsample_kernels), strict=True):
            reach = (reach + block + (kernel + rate) // 2 - 1) // rate
        return reach + 3

    @torch.no_grad()
    def start_from(self, other: UnitGenerator) -> None:
        """Take over the weights of a generator of this shape; if that has one voice alone, all begin as that.

        Raises:
            UserError: it is of another shape.
        """
        if other.config not in (self.config, dataclasses.replace(self.config, speaker_dim=0)):
            raise UserError("vocoder start: is of another shape (expected the preset of the training and its units)")
        known = dict(other.named_modules())
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear, nn.Embedding)) and name in known:
                layer: Any = known[name]
                if is_parametrized(module, "weight"):
                    module.weight = layer.weight.detach()  # which the weight norm takes apart
                else:
                    module.weight.copy_(layer.weight)
                if not isinstance(module, nn.Embedding) and module.bias is not None:
                    module.bias.copy_(layer.bias)


def fuse_weight_norm(module: nn.Module) -> None:
    """Turn weight-normalised layers into plain ones, in place: the same function, fewer operations."""
    for layer in module.modules():
        if is_parametrized(layer, "weight"):
            remove_parametrizations(layer, "weight")
