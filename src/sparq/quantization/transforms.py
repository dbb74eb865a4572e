"""Equivalent transformations of a block, learnable, folded into its weights: the function stays, the ranges change.

With x the input of a linear and A invertible, x·Wᵀ + b = ((x − z)·A⁻¹)·(W·Aᵀ)ᵀ + (b + W·z). OmniQuant (Shao et al.,
2023, section 3.3) learns a diagonal A and the shift z, AffineQuant (Ma et al., 2024) a whole matrix. Three places in a
block can take one up without any work at run time:

- where linears read a norm (q, k and v; the MLP's inputs): a diagonal A and z go into the norm. In a post-norm block
  the norm's output is the residual as well, and they are applied to the input of the linear;
- between v and the linear after the attention: one A and z for each key and value head, shared by the query heads that
  read it. The shift passes through the attention only where probabilities sum to 1: not beside a sink, and not under
  dropout;
- between q and k: q·k = (q·A)·(k·A⁻ᵀ). Under a rotary embedding, or a norm of queries and keys, that is another
  function, so it is left out there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparq.quantization.blocks import Attention, Block, Siblings
from sparq.quantization.smoothquant import smoothing_scale

SMALLEST = 1e-2  # of a scale, by magnitude, so that its inverse stays tame


def away_from_zero(x: Tensor) -> Tensor:
    """Keep magnitudes at or above `SMALLEST`, with the sign and the gradient of what was there."""
    sign = torch.where(x < 0, -torch.ones_like(x), torch.ones_like(x))
    return x + (sign * x.abs().clamp(min=SMALLEST) - x).detach()


class Diagonal(nn.Module):
    """A = diag(scale), for each of some heads, or one for all channels of an input."""

    def __init__(self, scale: Tensor) -> None:
        """Begin with a scale [heads, width] or [in]."""
        super().__init__()
        self.scale = nn.Parameter(scale.clone())

    @property
    def truncated(self) -> Tensor:
        """The scale, away from zero."""
        return away_from_zero(self.scale)

    def direct(self, x: Tensor) -> Tensor:
        """A·x on the second dimension of [heads, width, ...]."""
        return x * _spread(self.truncated, x)

    def dual(self, x: Tensor) -> Tensor:
        """A⁻ᵀ·x on the second dimension of [heads, width, ...]."""
        return x / _spread(self.truncated, x)


class Matrix(nn.Module):
    """A whole matrix A for each of some heads."""

    def __init__(self, matrix: Tensor) -> None:
        """Begin with A [heads, width, width], or one for all [width, width]."""
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())

    @property
    def whole(self) -> Tensor:
        """A, in float64: its inverse is not to be trusted in less."""
        return self.matrix.double()

    @property
    def dual_whole(self) -> Tensor:
        """A⁻ᵀ, in float64."""
        return torch.linalg.inv(self.whole).mT

    def direct(self, x: Tensor) -> Tensor:
        """A·x on the second dimension of [heads, width, ...]."""
        return torch.einsum("hij,hj...->hi...", self.whole.to(x.dtype), x)

    def dual(self, x: Tensor) -> Tensor:
        """A⁻ᵀ·x on the second dimension of [heads, width, ...]."""
        return torch.einsum("hij,hj...->hi...", self.dual_whole.to(x.dtype), x)


Kind = type[Diagonal | Matrix]  # each is made from a scale


def _spread(scale: Tensor, x: Tensor) -> Tensor:
    return scale.reshape(*scale.shape, *[1] * (x.ndim - scale.ndim))


@dataclasses.dataclass(frozen=True)
class InputRange:
    """What a linear reads, channel by channel; all three of one shape.

    Attributes:
        middle: the middle of the range, a running mean over batches of (max + min) / 2.
        smallest: least value.
        largest: greatest value.
    """

    middle: Tensor
    smallest: Tensor
    largest: Tensor

    def around(self, shift: Tensor | None) -> Tensor:
        """Largest magnitude of each channel once the shift is taken away."""
        shift = torch.zeros_like(self.middle) if shift is None else shift
        return torch.maximum(self.largest - shift, shift - self.smallest)

    def by_head(self, attention: Attention) -> InputRange:
        """Ranges [heads, width] of the values that reach the linear after the attention."""
        middle, smallest, largest = (_by_head(x, attention) for x in (self.middle, self.smallest, self.largest))
        return InputRange(middle.mean(-1), smallest.amin(-1), largest.amax(-1))


class Site(nn.Module):
    """What is learnt at one place: A, and a shift if there is room for one.

    Attributes:
        basis: A.
        shift: z, shaped like the scale that A began with; None for none.
    """

    def __init__(self, basis: Diagonal | Matrix, shift: Tensor | None = None) -> None:
        super().__init__()
        self.basis = basis
        self.shift = None if shift is None else nn.Parameter(shift.clone())

    @classmethod
    def smoothing(cls, kind: Kind, found: InputRange, weight: Tensor, alpha: float, *, shifted: bool) -> Site:
        """Begin as SmoothQuant would scale the input, once it is shifted to its middle.

        Args:
            kind: makes A from the scale.
            found: ranges of the input [heads, width].
            weight: max|W| of what reads it [heads, width].
            alpha: see `smoothing_scale`.
            shifted: whether there is room for a shift.
        """
        shift = found.middle if shifted else None
        return cls(kind(smoothing_scale(found.around(shift), weight, alpha).to(weight.dtype)), shift)


class Transformation(nn.Module):
    """All that is learnt of one block's equivalence.

    Attributes:
        inputs: where linears read a norm, one site for each set of siblings, in the order of the block.
        values: between v and the linear after the attention, a basis for each key and value head.
        scores: between q and k, from the identity; None where it would change the function.
    """

    def __init__(
        self,
        block: Block,
        state: Mapping[str, Tensor],
        ranges: Mapping[str, InputRange],
        alpha: float,
        kind: Kind,
        *,
        shifted: bool,
    ) -> None:
        """Begin the SmoothQuant way.

        Args:
            block: what is transformed.
            state: its parameters by full name, weights as [out, in].
            ranges: what its linears read, by the name of the linear: the first of each set of siblings, and the one
                after the attention.
            alpha: see `smoothing_scale`.
            kind: makes A from a scale, between v and out and between q and k; at the norms it is diagonal.
            shifted: whether there are shifts.
        """
        super().__init__()
        self.block = block
        self.inputs = nn.ModuleList()
        for siblings in block.smoothed:
            weight = torch.stack([state[f"{name}.weight"].abs().amax(0) for name in siblings.linears]).amax(0)
            found = ranges[siblings.linears[0]]
            self.inputs.append(Site.smoothing(Diagonal, found, weight, alpha, shifted=shifted and siblings.shiftable))
        attention = block.attention
        weight = _by_head(state[f"{attention.output}.weight"].abs().amax(0), attention).amax(-1)
        found = ranges[attention.output].by_head(attention)
        self.values = Site.smoothing(kind, found, weight, alpha, shifted=shifted and attention.shiftable)
        self.scores = Site(kind(torch.ones_like(weight))) if attention.direct_scores else None

    def fold(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the parameters of the transformed block, differentiable in what is learnt.

        Args:
            state: parameters of the block by full name, weights as [out, in].

        Returns:
            The same names and, for linears that scale and shift their input themselves, "input_scale" and
            "input_shift".
        """
        new = dict(state)
        for siblings, site in zip(self.block.smoothed, self.inputs, strict=True):
            _fold_input(new, siblings, site)
        _fold_attention(new, self.block.attention, self.values, self.scores)
        return new


def _fold_input(new: dict[str, Tensor], siblings: Siblings, site: Any) -> None:
    scale = site.basis.truncated
    for name in siblings.linears:
        weight = new[f"{name}.weight"]
        if site.shift is not None:
            new[f"{name}.bias"] = new[f"{name}.bias"] + weight @ site.shift
        new[f"{name}.weight"] = weight * scale
        if siblings.norm is None:
            new[f"{name}.input_scale"] = scale
            if site.shift is not None:
                new[f"{name}.input_shift"] = site.shift
    if siblings.norm is not None:
        norm = siblings.norm_name
        new[f"{norm}.weight"] = new[f"{norm}.weight"] / scale
        if (bias := new.get(f"{norm}.bias")) is not None:
            new[f"{norm}.bias"] = (bias if site.shift is None else bias - site.shift) / scale


def _fold_attention(new: dict[str, Tensor], attention: Attention, values: Site, scores: Site | None) -> None:
    # A bias is a further column of its weight: what is done to the rows is done to both.
    biased = [f"{name}.bias" in new for name in attention.linears]
    rows = [
        torch.cat([new[f"{name}.weight"], new[f"{name}.bias"][:, None]], 1) if bias else new[f"{name}.weight"]
        for name, bias in zip(attention.linears, biased, strict=True)
    ]
    q, k, v = attention.split(rows)
    if scores is not None:
        q, k = scores.basis.direct(q), scores.basis.dual(k)
    name = attention.output
    columns = _by_head(new[f"{name}.weight"].T, attention)
    if values.shift is not None:
        v = torch.cat([v[..., :-1], v[..., -1:] - values.shift[..., None]], -1)
        new[f"{name}.bias"] = new[f"{name}.bias"] + torch.einsum("hwrd,hw->d", columns, values.shift)
    v, columns = values.basis.dual(v), values.basis.direct(columns)
    new[f"{name}.weight"] = columns.transpose(1, 2).flatten(0, 2).T
    for name, bias, one in zip(attention.linears, biased, attention.join([q, k, v]), strict=True):
        new[f"{name}.weight"] = one[:, :-1] if bias else one
        if bias:
            new[f"{name}.bias"] = one[:, -1]


def _by_head(x: Tensor, attention: Attention) -> Tensor:
    """Channels after the attention [query heads · width, ...] → [heads, width, query heads of one head, ...]."""
    return x.unflatten(0, (attention.heads, -1, attention.width)).transpose(1, 2)
