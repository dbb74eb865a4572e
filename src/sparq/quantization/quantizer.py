"""The one quantiser: uniform, dynamic, with straight-through gradients.

It is *fake* quantisation: values are put on the grid of an integer format and stay floating-point numbers, so what a
width costs in accuracy can be measured on any device and learnt through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sparq.errors import UserError

Granularity = Literal["tensor", "channel", "token", "group"]
Extremes = Callable[[Tensor], tuple[Tensor, Tensor]]


def round_straight_through(x: Tensor) -> Tensor:
    """Round to nearest (ties to even) with the gradient of the identity (Bengio et al., 2013).

    The sum is exact: round(x) − x is representable for every x, by Sterbenz' lemma.
    """
    return x + (x.round() - x).detach()


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, low: int, high: int) -> Tensor:
    """Put values on the grid ``(q − zero_point) · scale``, q an integer in [low, high].

    Args:
        x: values, any shape.
        scale: grid step, broadcastable to ``x``; it takes part in the gradient.
        zero_point: the integer that stands for 0, broadcastable to ``x``.
        low: smallest integer.
        high: largest integer.

    Returns:
        Values of the shape and dtype of ``x``.
    """
    q = (round_straight_through(x / scale) + zero_point).clamp(low, high)
    return (q - zero_point) * scale


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """A dynamic uniform quantiser: the range is taken from the values it is given.

    Attributes:
        bits: width, at least 2.
        granularity: what shares a scale: the whole "tensor"; a "channel" (all values of one index of the first
            dimension: the output channels of a weight [out, in]); a "token" (one vector along the last dimension);
            a "group" of ``group_size`` neighbours along the last dimension.
        symmetric: the grid is −(2^(bits−1) − 1) … 2^(bits−1) − 1 steps of max|x| / (2^(bits−1) − 1); otherwise
            2^bits levels between min(x, 0) and max(x, 0). Zero is on either grid.
        group_size: values in a group; given for that granularity and no other.
    """

    bits: int
    granularity: Granularity
    symmetric: bool = True
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.bits < 2:
            raise UserError(f"bits: {self.bits} is below 2, the narrowest grid with a positive and a negative level")
        if self.granularity not in {"tensor", "channel", "token", "group"}:
            raise UserError(f"granularity: {self.granularity!r} is not tensor, channel, token or group")
        if (self.granularity == "group") != (self.group_size is not None):
            raise UserError(f"group_size: {self.group_size} does not go with granularity {self.granularity!r}")

    @property
    def levels(self) -> tuple[int, int]:
        """Smallest and largest integer of the grid."""
        if self.symmetric:
            largest = 2 ** (self.bits - 1) - 1
            return -largest, largest
        return 0, 2**self.bits - 1

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of whatever shares a scale; shapes broadcast to ``x`` (to its groups)."""
        dims = {
            "tensor": tuple(range(x.ndim)),
            "channel": tuple(range(1, x.ndim)),
        }.get(self.granularity, (-1,))
        return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)

    def grid(self, smallest: Tensor, largest: Tensor) -> tuple[Tensor, Tensor | int]:
        """Step and zero point of the grid from one value to another, of any one shape; values beyond are cut off."""
        low, high = self.levels
        if self.symmetric:
            return _nonzero(torch.maximum(-smallest, largest) / high), 0
        smallest = smallest.clamp(max=0)
        scale = _nonzero((largest.clamp(min=0) - smallest) / (high - low))
        return scale, round_straight_through(-smallest / scale)

    def range_parameters(self, x: Tensor) -> tuple[Tensor, Tensor | int]:
        """Step and zero point of the grid that just covers ``x``; shapes broadcast to ``x`` (to its groups)."""
        return self.grid(*self.extremes(x))

    def grouped(self, x: Tensor) -> Tensor:
        """View values by what shares a scale: [..., groups, group_size] for groups, else as they are.

        Raises:
            UserError: the last dimension is not a multiple of ``group_size``.
        """
        if self.group_size is None:
            return x
        if x.shape[-1] % self.group_size:
            raise UserError(f"group_size: {self.group_size} does not divide the dimension of {x.shape[-1]}")
        return x.unflatten(-1, (-1, self.group_size))

    def __call__(self, x: Tensor, extremes: Extremes | None = None) -> Tensor:
        """Fake-quantise values of any shape; shape and dtype stay.

        Half-precision values go through float32, where 127 steps are still apart from their neighbours.

        Args:
            x: the values.
            extremes: gives the range of the grid for the `grouped` values; None for all that is in them.

        Raises:
            UserError: the last dimension is not a multiple of ``group_size``.
        """
        values = self.grouped(x.float() if x.dtype in {torch.float16, torch.bfloat16} else x)
        on_grid = fake_quantize(values, *self.grid(*(extremes or self.extremes)(values)), *self.levels)
        return on_grid.reshape(x.shape).to(x.dtype)


def _nonzero(scale: Tensor) -> Tensor:
    """A step of 1 where all values are zero, which any step represents."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))
