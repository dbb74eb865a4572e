"""OmniQuant (Shao et al., 2023): what of one block is learnt, and what the block computes with while it is.

Learnable weight clipping (section 3.2 there) and a learnable equivalent transformation (section 3.3), together. All
linears of a block are on asymmetric grids; the one that leaves the MLP is quantised and not transformed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from sparq.quantization.blocks import Block
from sparq.quantization.clipping import LearnableClipping
from sparq.quantization.config import QuantizationConfig
from sparq.quantization.transforms import Diagonal, InputRange, Kind, Transformation


class OmniQuant(nn.Module):
    """What OmniQuant learns of one block.

    Attributes:
        kind: makes the transformation between v and out, and q and k, from a scale.
        decays: whether the learning rates fall to zero along a cosine; else they stay.
        relative: whether the error of a token counts in proportion to its size.
        transformation: the equivalence.
        clippings: of the weights, in the order of the block's linears; none at full precision.
    """

    kind: ClassVar[Kind] = Diagonal
    decays: ClassVar[bool] = False
    relative: ClassVar[bool] = False

    def __init__(
        self,
        block: Block,
        state: Mapping[str, Tensor],
        ranges: Mapping[str, InputRange],
        config: QuantizationConfig,
    ) -> None:
        """Begin where nothing has been learnt.

        Args:
            block: what is quantised.
            state: its parameters in full precision, by full name, weights as [out, in].
            ranges: see `Transformation`.
            config: widths, groups, learning rates.
        """
        super().__init__()
        self.block = block
        self.config = config
        self.transformation = self.equivalence(state, ranges)
        self.clippings = nn.ModuleList()
        for name in block.linears:
            weight = state[f"{name}.weight"]
            quantizer = config.weight_quantizer(weight.shape[1])
            if quantizer is not None:
                self.clippings.append(LearnableClipping(weight, quantizer))
        self.begin_epoch(config.epochs - 1)

    def equivalence(self, state: Mapping[str, Tensor], ranges: Mapping[str, InputRange]) -> Transformation:
        """The transformation that the learning begins with."""
        return Transformation(self.block, state, ranges, self.config.alpha, self.kind, shifted=self.config.shifts)

    def begin_epoch(self, epoch: int) -> None:
        """Tell which epoch of the learning begins, from 0."""

    def forward(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters of the quantised block, differentiable in what is learnt.

        Args:
            state: the block's parameters in full precision, by full name, weights as [out, in].

        Returns:
            The same, transformed, and weights on their grids (`Transformation.fold` says what is added).
        """
        new = self.transformation.fold(state)
        for name, clipping in self.weight_clippings().items():
            new[f"{name}.weight"] = clipping(new[f"{name}.weight"])
        return new

    def weight_clippings(self) -> dict[str, LearnableClipping]:
        """The clipping of each linear's weight, by its full name; none at full precision."""
        clippings: list[Any] = list(self.clippings)
        return dict(zip(self.block.linears, clippings, strict=True)) if clippings else {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is learnt with its learning rates, as an optimizer takes it."""
        rates = {"transformation": self.config.transformation_rate, "clippings": self.config.clipping_rate}
        return [{"params": list(getattr(self, name).parameters()), "lr": rate} for name, rate in rates.items()]
