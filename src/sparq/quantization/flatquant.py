"""FlatQuant (Sun et al., 2024): flat activations and weights by a learnt matrix before every linear of a block.

Where OmniQuant scales the channels of an input, FlatQuant mixes them besides: x becomes (x/s)·(L ⊗ R), two small
matrices whose product reaches every channel (`sparq.quantization.kronecker`), and the weight takes the inverse. The
residual stream stays as it is, so that norms of any kind, before or after a half, gates and tied embeddings go with it;
in return the product is left to be done as the input comes. Learnt are

- s, L and R of what q, k and v read, of what the MLP's first linears read, and of what its last one reads;
- a matrix of each head between v and the linear after the attention, folded into both, and one across the heads, which
  is done as its input comes;
- a matrix of each head of q and of k. Where a rotary embedding or a norm comes next it cannot be folded: they are on
  their grids in its basis, and taken back;
- how much of its range the grid of each weight, each input, and q, k and v covers.

All matrices begin as Hadamard transforms with random signs, so that the learning begins where a rotation ends. Beyond
its authors' settings: the error of a block counts relative to each token (`reconstruction`), and q has a grid too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparq.quantization.blocks import Block
from sparq.quantization.clipping import LearnableShares
from sparq.quantization.config import QuantizationConfig
from sparq.quantization.hadamard import hadamard, random_signs
from sparq.quantization.kronecker import factor_sizes, kronecker
from sparq.quantization.omniquant import OmniQuant
from sparq.quantization.smoothquant import smoothing_scale
from sparq.quantization.transforms import Diagonal, InputRange, Matrix, Transformation


class TurnedMatrix(Matrix):
    """A matrix for each of some heads that begins as K·diag(scale), K the Hadamard transform."""

    def __init__(self, scale: Tensor) -> None:
        """Begin with a scale [heads, width]."""
        super().__init__(hadamard(torch.diag_embed(scale)).mT)


class Factors(nn.Module):
    """L and R of one input, or L alone."""

    def __init__(self, left: int, right: int | None, generator: torch.Generator, like: Tensor) -> None:
        """Begin with Hadamard transforms after random signs, of given sizes and of the type of a tensor."""
        super().__init__()
        self.left = Matrix(_turn(left, generator).to(like))
        self.right = None if right is None else Matrix(_turn(right, generator).to(like))

    def fold(self, new: dict[str, Tensor], name: str) -> None:
        """Multiply the weight of a linear by the inverse, and give it what its input is to be multiplied by."""
        weight = new[f"{name}.weight"]
        right = None if self.right is None else self.right.dual_whole.to(weight)
        new[f"{name}.weight"] = kronecker(weight, self.left.dual_whole.to(weight), right)
        new[f"{name}.input_left"] = self.left.matrix
        if self.right is not None:
            new[f"{name}.input_right"] = self.right.matrix


def _turn(size: int, generator: torch.Generator) -> Tensor:
    return hadamard(torch.diag(random_signs(size, generator)))


class FlatTransformation(Transformation):
    """OmniQuant's places, turned, and what comes besides.

    Attributes:
        factors: of each input, in the order of `Block.readers`.
        mlp_scale: of what the MLP's last linear reads.
        bases: of q and k, where these do not meet as the linears make them; else empty.
        activations: the clipping of each input, in the order of `Block.readers`, and of q, k and v; else empty.
    """

    def __init__(
        self, block: Block, state: Mapping[str, Tensor], ranges: Mapping[str, InputRange], config: QuantizationConfig
    ) -> None:
        """Begin where a smoothed and rotated block would be.

        Args:
            block: what is transformed.
            state: its parameters by full name, weights as [out, in].
            ranges: what the first linear of each of `Block.readers` reads, by its name.
            config: for ``alpha`` and ``seed``, and whether there are shifts.
        """
        super().__init__(block, state, ranges, config.alpha, TurnedMatrix, shifted=config.shifts)
        attention, last = block.attention, state[f"{block.mlp_output}.weight"]
        generator = torch.Generator().manual_seed(config.seed)
        self.factors = nn.ModuleList()
        for first, *_ in block.readers:
            # The matrices of the heads are between v and out already; what is left is across the heads.
            left, right = factor_sizes(state[f"{first}.weight"].shape[1])
            if first == attention.output:
                self.factors.append(Factors(attention.query_heads, None, generator, last))
            else:
                self.factors.append(Factors(left, right, generator, last))
        found = ranges[block.mlp_output].around(None)
        self.mlp_scale = Diagonal(smoothing_scale(found, last.abs().amax(0), config.alpha).to(last.dtype))
        self.bases = nn.ModuleList()
        if not attention.direct_scores:
            for heads in (attention.query_heads, attention.heads):
                self.bases.append(TurnedMatrix(last.new_ones(heads, attention.width)))
        clipped = len(self.factors) + 3 if config.clips else 0
        self.activations = nn.ModuleList(LearnableShares(last.new_ones(())) for _ in range(clipped))

    def fold(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the parameters of the transformed block, and in buffers of `SimulatedLinear` what stays to be done."""
        new, last = super().fold(state), self.block.mlp_output
        scale = self.mlp_scale.truncated
        new[f"{last}.weight"] = new[f"{last}.weight"] * scale
        new[f"{last}.input_scale"] = scale
        factors: list[Any] = list(self.factors)
        for names, one in zip(self.block.readers, factors, strict=True):
            for name in names:
                one.fold(new, name)
        bases: list[Any] = list(self.bases)
        if bases:
            _store_bases(new, self.block, *(basis.whole.to(scale.dtype) for basis in bases), key="state_basis")
            inverses = (basis.dual_whole.mT.to(scale.dtype) for basis in bases)
            _store_bases(new, self.block, *inverses, key="state_inverse")
        clippings: list[Any] = list(self.activations)
        if clippings:
            *inputs, q, k, v = [torch.stack(one.shares) for one in clippings]
            for names, share in zip(self.block.readers, inputs, strict=True):
                new |= {f"{name}.input_clip": share for name in names}
            states = self.block.attention.by_linear(q, k, v)
            new |= {f"{name}.state_clip": parts[:, None] for name, parts in states.items()}
        return new


def _store_bases(new: dict[str, Tensor], block: Block, query: Tensor, key_heads: Tensor, *, key: str) -> None:
    """Give q's and k's matrices to the linears that make them; v among them has none, which is the identity."""
    none = torch.eye(block.attention.width).to(query).expand_as(key_heads)
    for name, matrices in block.attention.by_linear(query, key_heads, none).items():
        if block.attention.makes_scores(name):
            new[f"{name}.{key}"] = matrices


class FlatQuant(OmniQuant):
    """What FlatQuant learns of one block."""

    decays: ClassVar[bool] = True
    relative: ClassVar[bool] = True

    def equivalence(self, state: Mapping[str, Tensor], ranges: Mapping[str, InputRange]) -> Transformation:
        """The transformation that the learning begins with."""
        return FlatTransformation(self.block, state, ranges, self.config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is learnt with its learning rates, as an optimizer takes it: all clipping has one rate."""
        transformed, clipped = super().parameter_groups()
        learnt: Any = self.transformation
        clipping = {id(one) for one in learnt.activations.parameters()}
        activations = [one for one in transformed["params"] if id(one) in clipping]
        transformed["params"] = [one for one in transformed["params"] if id(one) not in clipping]
        clipped["params"] += activations
        return [transformed, clipped]
