"""HiFi-GAN's discriminators, which tell generated speech from recorded speech while the vocoder learns.

Multi-period discriminators fold the waveform into columns of a period and hear its periodicity; multi-scale ones hear
the waveform itself and averages of it (Kong et al. 2020, sections 2.3 and 2.4, appendix A). The defaults are theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from sparq.errors import UserError

_SLOPE = 0.1
_SCALE_KERNELS = (15, 41, 41, 41, 41, 41, 5)
_SCALE_STRIDES = (1, 2, 2, 4, 4, 1, 1)
_SCALE_GROUPS = (1, 4, 16, 16, 16, 16, 1)
_SCALE_WIDTHS = (1, 1, 2, 4, 8, 8, 8)


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """How large the discriminators are.

    Attributes:
        periods: one discriminator for each; primes, so that their views overlap little.
        period_channels: channels of a period discriminator's layers, all but the last of stride 3.
        scales: how many scale discriminators; each hears half the rate of the one before.
        scale_channels: channels of a scale discriminator's first layer (it ends with eight times as many); a
            multiple of 16.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    scales: int = 3
    scale_channels: int = 128

    def __post_init__(self) -> None:
        for name in ("periods", "period_channels"):
            values = tuple(getattr(self, name))
            if not values or min(values) < 1:
                raise UserError(f"discriminator {name}={list(values)}: expected positive whole numbers")
            object.__setattr__(self, name, values)
        if self.scales < 0:
            raise UserError(f"discriminator scales={self.scales}: expected 0 or more")
        if self.scale_channels < 16 or self.scale_channels % 16:
            raise UserError(f"discriminator scale_channels={self.scale_channels}: expected a multiple of 16")

    @classmethod
    def small(cls) -> DiscriminatorConfig:
        """Give sizes that train on a CPU core beside the small generator.

        There are no scale discriminators: one costs more than twice what all period discriminators do, since
        grouped convolutions are slow on CPUs, and HiFi-GAN's ablation loses far less without them than without those.
        """
        return cls(period_channels=(8, 24, 48, 64, 64), scales=0)


class PeriodDiscriminator(nn.Module):
    """Hear every ``period``-th sample: two-dimensional convolutions that never mix columns."""

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.period = period
        strides = [3] * (len(channels) - 1) + [1]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(fan_in, fan_out, (5, 1), (stride, 1), (2, 0)))
            for fan_in, fan_out, stride in zip([1, *channels[:-1]], channels, strides, strict=True)
        )
        self.last = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Map [batch, samples] to the activations of every layer, the last being the verdict."""
        missing = -waveform.shape[1] % self.period
        x = functional.pad(waveform[:, None], (0, missing), mode="reflect")
        x = x.unflatten(2, (-1, self.period))
        return _activations(x, self.layers, self.last)


class ScaleDiscriminator(nn.Module):
    """Hear the waveform, averaged to half its rate ``halvings`` times, through long grouped convolutions."""

    def __init__(self, halvings: int, channels: int) -> None:
        super().__init__()
        self.halvings = halvings
        # The first scale, which hears raw samples, is spectrally normalised in HiFi-GAN; the others weight-normalised.
        norm = weight_norm if halvings else spectral_norm
        widths = [channels * w for w in _SCALE_WIDTHS]
        self.layers = nn.ModuleList(
            norm(nn.Conv1d(fan_in, fan_out, kernel, stride, kernel // 2, groups=groups))
            for fan_in, fan_out, kernel, stride, groups in zip(
                [1, *widths[:-1]], widths, _SCALE_KERNELS, _SCALE_STRIDES, _SCALE_GROUPS, strict=True
            )
        )
        self.last = norm(nn.Conv1d(widths[-1], 1, 3, padding=1))

    def forward(self, waveform: Tensor) -> list[Tensor]:
        """Map [batch, samples] to the activations of every layer, the last being the verdict."""
        x = waveform[:, None]
        for _ in range(self.halvings):
            x = functional.avg_pool1d(x, 4, 2, padding=2)
        return _activations(x, self.layers, self.last)


def _activations(x: Tensor, layers: nn.ModuleList, last: nn.Module) -> list[Tensor]:
    found = []
    for layer in layers:
        x = functional.leaky_relu(layer(x), _SLOPE)
        found.append(x)
    return [*found, last(x)]


class Discriminators(nn.Module):
    """All period and scale discriminators side by side."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            [
                *(PeriodDiscriminator(period, config.period_channels) for period in config.periods),
                *(ScaleDiscriminator(halvings, config.scale_channels) for halvings in range(config.scales)),
            ]
        )

    def forward(self, waveform: Tensor) -> list[list[Tensor]]:
        """Map [batch, samples] to each member's activations."""
        return [member(waveform) for member in self.members]


def discriminator_loss(real: list[list[Tensor]], generated: list[list[Tensor]]) -> Tensor:
    """Least-squares loss that wants 1 for recorded and 0 for generated speech, summed over members (eq. 1)."""
    losses = [(1 - r[-1]).square().mean() + g[-1].square().mean() for r, g in zip(real, generated, strict=True)]
    return torch.stack(losses).sum()


def adversarial_loss(generated: list[list[Tensor]]) -> Tensor:
    """Least-squares loss of a generator that wants 1 for what it generated, summed over members (eq. 2)."""
    return torch.stack([(1 - g[-1]).square().mean() for g in generated]).sum()


def feature_loss(real: list[list[Tensor]], generated: list[list[Tensor]]) -> Tensor:
    """Mean absolute difference of all inner activations, summed over layers and members (eq. 4)."""
    return torch.stack(
        [
            (a.detach() - b).abs().mean()
            for r, g in zip(real, generated, strict=True)
            for a, b in zip(r[:-1], g[:-1], strict=True)
        ]
    ).sum()
