"""Where the grid of a weight ends: at its largest value, at a percentile of its tail, or where learning puts it.

A grid that leaves the few largest weights outside has finer steps for all the others. `TailClipping` cuts a given share
of the tail (paper, appendix G.4 and Table 9); `LearnableClipping` is OmniQuant's, by gradient (Shao et al., 2023,
section 3.2), and FlatQuant learns the same of activations.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from sparq.quantization.quantizer import Extremes, Quantizer

START = 4.0  # sigmoid(4) = 0.982: nearly nothing is cut off at first, and the gradient is still there


@dataclasses.dataclass(frozen=True)
class TailClipping:
    """Cut the tail of the magnitudes when the scale is computed, for symmetric grids.

    Attributes:
        percent: how much of whatever shares a scale lies beyond the grid at most, 0 to below 100; those values are
            set to the grid's ends.
    """

    percent: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Range ±t of the last dimension, t being the magnitude that at most ``percent`` of the values exceed.

        Args:
            x: weights [..., values that share a scale].

        Returns:
            −t and t, each [..., 1].
        """
        magnitudes = x.abs()
        beyond = math.floor(x.shape[-1] * self.percent / 100)
        # kthvalue and not quantile, which refuses more than 2^24 values.
        largest = magnitudes.kthvalue(x.shape[-1] - beyond, dim=-1, keepdim=True).values
        # A row that is almost only zeros keeps its range: without it, its few values would be lost.
        largest = torch.where(largest > 0, largest, magnitudes.amax(-1, keepdim=True))
        return -largest, largest


def shrunk(quantizer: Quantizer, lower: Tensor, upper: Tensor) -> Extremes:
    """Ranges from ``lower`` times the smallest value to ``upper`` times the largest; both broadcast to the ranges."""

    def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
        smallest, largest = quantizer.extremes(x)
        return smallest * lower, largest * upper

    return extremes


class LearnableShares(nn.Module):
    """Learn how much of a range a grid covers: from min·sigmoid(β) to max·sigmoid(γ), at first almost all of it.

    Attributes:
        upper: γ, one for each range.
        lower: β, the same.
    """

    def __init__(self, ranges: Tensor) -> None:
        """Begin with almost the whole of some ranges, whose shape and type are those of a tensor."""
        super().__init__()
        start = torch.full_like(ranges, START)
        self.upper, self.lower = nn.Parameter(start), nn.Parameter(start.clone())

    @property
    def shares(self) -> tuple[Tensor, Tensor]:
        """What is left of the smallest and of the largest values, from 0 to 1."""
        return self.lower.sigmoid(), self.upper.sigmoid()


class LearnableClipping(LearnableShares):
    """Learn how much of a weight's range the grid covers, for each set of weights that share a scale."""

    def __init__(self, weight: Tensor, quantizer: Quantizer) -> None:
        """Begin with almost the whole range.

        Args:
            weight: [out, in].
            quantizer: the quantiser that this is for.
        """
        super().__init__(quantizer.extremes(quantizer.grouped(weight.detach()))[0])
        self.quantizer = quantizer

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The learnt range of a weight, grouped as the quantiser has it."""
        return shrunk(self.quantizer, *self.shares)(x)

    def forward(self, weight: Tensor) -> Tensor:
        """Fake-quantise a weight [out, in] on the learnt range."""
        return self.quantizer(weight, self.extremes)
