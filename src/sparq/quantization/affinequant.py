"""AffineQuant (Ma et al., 2024): OmniQuant with matrices where it has scales between the linears of the attention.

A matrix mixes channels as well as scaling them. It stays invertible because it is let go gradually (the paper's gradual
mask): what lies beside the diagonal begins at zero, is weighted by a small stability factor, and takes part in bands
that grow with the epochs, so that the diagonal keeps dominating.

At the norms the transformation is diagonal, as in the reference's quantisation of weights and activations: the inverse
of a whole matrix could not be folded into a norm, and would cost a further product for each of its readers.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from sparq.quantization.omniquant import OmniQuant
from sparq.quantization.transforms import Kind, Matrix, away_from_zero


def gradual_mask(width: int, epoch: int, epochs: int, stability_factor: float) -> Tensor:
    """Mask [width, width] of an epoch: 1 on the diagonal, the stability factor in a band beside it, else 0.

    Args:
        width: of the matrices.
        epoch: from 0; the band is then only the diagonal.
        epochs: how many there are; in the last one the band is the whole matrix. So it is if there is only one.
        stability_factor: weight of the band.
    """
    progress = epoch / (epochs - 1) if epochs > 1 else 1.0
    band = int((width - 1) * progress) + 1
    place = torch.arange(width)
    distance = (place[:, None] - place).abs()
    return torch.where(distance < band, stability_factor, 0.0).fill_diagonal_(1.0)


class GradualMatrix(Matrix):
    """A = matrix ∘ mask, for each of some heads; its diagonal stays away from zero."""

    def __init__(self, scale: Tensor) -> None:
        """Begin with the diagonal of a scale [heads, width]."""
        super().__init__(torch.diag_embed(scale))
        self.mask: Tensor
        self.register_buffer("mask", torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device))

    @property
    def whole(self) -> Tensor:
        """A [heads, width, width], in float64."""
        diagonal = self.matrix.diagonal(dim1=-2, dim2=-1)
        tamed = self.matrix + torch.diag_embed(away_from_zero(diagonal) - diagonal)
        return (tamed * self.mask).double()


class AffineQuant(OmniQuant):
    """What AffineQuant learns of one block; its matrices are as free as in the last epoch unless one has begun."""

    kind: ClassVar[Kind] = GradualMatrix

    def begin_epoch(self, epoch: int) -> None:
        """Let the matrices go as far as in an epoch, from 0."""
        for matrix in self.modules():
            if isinstance(matrix, GradualMatrix):
                width, factor = matrix.mask.shape[-1], self.config.stability_factor
                matrix.mask.copy_(gradual_mask(width, epoch, self.config.epochs, factor))
