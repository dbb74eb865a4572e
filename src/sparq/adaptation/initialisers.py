"""Where low-rank adapters start: LoRA's own way, PiSSA, MiLoRA, LoftQ.

An adapter adds s·B·A to a frozen weight W [out, in]; s = alpha / rank. LoRA starts it at nothing: A is random, B zero.
The others start it at something, S = s·B·A, that is taken out of the weight, W − S, so that their sum, the model, is at
first what it was:

==========  ==============================================================================  ===========================
pissa       S is what the largest singular values of W make: they are trained first         Meng et al. 2024, eq. 2-4
milora      S is what the smallest singular values of W make: the large ones are spared     Wang et al. 2025 (NAACL)
loftq       S makes up for what quantising the weight, to Q ≈ W − S, costs                  Li et al. 2024, algorithm 1
==========  ==============================================================================  ===========================

With dropout before the adapter, part of S is dropped from the first training step on, which none of them accounts for.
What is written here gives the same again on the same machine; a training goes on from its checkpoint because of that.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from sparq.adaptation.packed_linear import Grid
from sparq.config import LoraConfig
from sparq.quantization.blocks import matrix

ADAPTER = "default"  # PEFT's name of the only adapter


@dataclasses.dataclass(frozen=True)
class Factors:
    """A matrix of low rank, evenly shared by its factors.

    Attributes:
        left: [out, k], orthogonal columns.
        right: [k, in], orthogonal rows; each as long as the column of ``left`` that it is multiplied with.
    """

    left: Tensor
    right: Tensor

    @property
    def product(self) -> Tensor:
        """The matrix, [out, in]."""
        return self.left @ self.right


@dataclasses.dataclass(frozen=True)
class QuantizedStart:
    """What LoftQ found for one weight W.

    Attributes:
        base: Q [out, in], on the grid.
        factors: of S, the best approximation of W − Q of its rank.
        errors: ‖W − Q − S‖ (Frobenius) after each iteration.
    """

    base: Tensor
    factors: Factors
    errors: tuple[float, ...]


def singular_factors(weight: Tensor, rank: int, *, smallest: bool = False) -> Factors:
    """Take the part of a matrix that its largest, or smallest, singular values make.

    The singular vectors of the shorter side are the eigenvectors of its Gram matrix, found in float64, which is several
    times faster than a singular value decomposition; the part is the projection on them. Singular values that are
    nothing in float32 are left out: both factors would be zero there, and an adapter so started would never learn.

    Args:
        weight: [out, in].
        rank: how many singular values at most.
        smallest: whether they are the smallest.

    Returns:
        U·√Σ and √Σ·Vᵀ of the singular values taken, in float64; the largest first.
    """
    matrix = weight.double()
    if matrix.shape[0] > matrix.shape[1]:
        turned = singular_factors(weight.T, rank, smallest=smallest)
        return Factors(turned.right.T, turned.left.T)
    vectors = torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)  # the largest eigenvalue first
    projected = vectors.T @ matrix
    values = projected.norm(dim=1)  # the singular values, exact even where the eigenvalues are all rounding
    there = values > torch.finfo(torch.float32).eps * values[0]
    chosen = slice(-rank, None) if smallest else slice(rank)
    vectors, projected, root = (part[chosen] for part in (vectors.T[there], projected[there], values[there].sqrt()))
    return Factors(vectors.T * root, projected / root.unsqueeze(1))


def loftq(weight: Tensor, rank: int, grid: Grid, iterations: int) -> QuantizedStart:
    """Alternate quantisation, Q = q(W − S), and singular value decomposition, S ≈ W − Q (Li et al. 2024, algorithm 1).

    The decomposition is the best answer to its Q, so that even one iteration is closer to W than plain quantisation is.
    Rounding to nearest with scales that follow the values is not the best answer to its S: the error may rise from one
    iteration to the next, and does. Hence the iteration with the smallest error is what counts; more iterations
    cannot do harm.

    Args:
        weight: W [out, in].
        rank: of S.
        grid: puts a weight where it will be stored.
        iterations: at least 1.
    """
    exact = weight.double()
    found: list[tuple[float, Tensor, Factors]] = []
    removed = torch.zeros_like(exact)
    for _ in range(iterations):
        base = grid((exact - removed).to(weight.dtype))
        factors = singular_factors(exact - base.double(), rank)
        removed = factors.product
        found.append((float((exact - base.double() - removed).norm()), base, factors))
    _, base, factors = min(found, key=lambda each: each[0])
    return QuantizedStart(base, factors, tuple(error for error, _, _ in found))


@torch.no_grad()
def initialise(model: PeftModel, config: LoraConfig, grid: Grid | None = None) -> None:
    """Start the adapters of a model the way the configuration names, and take out of the weights what is in them.

    Args:
        model: with adapters as PEFT makes them: first matrices random, second ones zero.
        config: initialisation and rank.
        grid: where the weights will be stored; needed by LoftQ.
    """
    if config.initialisation == "default":
        return
    for module in model.modules():
        if isinstance(module, LoraLayer):
            _initialise_layer(module, config, grid)


def _initialise_layer(layer: Any, config: LoraConfig, grid: Grid | None) -> None:
    linear = layer.get_base_layer()
    weight = matrix(linear)
    if config.initialisation == "loftq":
        assert grid is not None, "LoftQ needs the grid that weights are stored on"
        start = loftq(weight, config.rank, grid, config.loftq_iterations)
        _fill(layer, start.factors)
        weight.copy_(start.base)
        return
    _fill(layer, singular_factors(weight, config.rank, smallest=config.initialisation == "milora"))
    first, second = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    # With the adapter as it was rounded into its matrices, so that the sum is the weight.
    weight.copy_(weight.double() - layer.scaling[ADAPTER] * (second.double() @ first.double()))


def _fill(layer: Any, factors: Factors) -> None:
    """Put a matrix into an adapter, whose scaling is divided out; ranks it does not need stay LoRA's own."""
    count = len(factors.right)
    root = layer.scaling[ADAPTER] ** 0.5
    layer.lora_A[ADAPTER].weight[:count] = (factors.right / root).to(layer.lora_A[ADAPTER].weight.dtype)
    layer.lora_B[ADAPTER].weight[:, :count] = (factors.left / root).to(layer.lora_B[ADAPTER].weight.dtype)
