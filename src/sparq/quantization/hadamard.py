"""Hadamard transforms of any width: rotations that spread one large channel evenly over all of them, fast.

A width n = 2^k · m with m odd takes K = H_{2^k} ⊗ C_m: Sylvester's Hadamard matrix and, for the odd part, the discrete
Hartley matrix C_m[i, j] = (cos(2πij/m) + sin(2πij/m)) / √m (Bracewell, 1983), which is orthogonal for every m. A
Hadamard matrix in blocks of 2^k would be simpler, but it spreads a channel over one block only: over 64 of the 576
channels of SmolLM2, whereas no entry of K is above √(2/n). Nor does K need a table of the Hadamard matrices that are
known for some multiples of four. Both factors are symmetric and orthogonal, so K is its own inverse.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST_PIECE = 32
_Matrix = np.ndarray[Any, np.dtype[np.float64]]


def hadamard(x: Tensor, dim: int = -1) -> Tensor:
    """Multiply a dimension by K; done twice it gives ``x`` back.

    Args:
        x: [..., n, ...], floating point; n at least 1.
        dim: where n stands.

    Returns:
        The shape and dtype of ``x``; half precision is added up in float32.
    """
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    behind = math.prod(x.shape[dim:])
    last = dim in {-1, x.ndim - 1}
    for factor in _factors(x.shape[dim]):
        matrix = torch.as_tensor(factor, dtype=y.dtype, device=y.device)
        if last:
            # Multiply the first of the axes that n falls into, and put it last; after all factors it is first again.
            y = (y.unflatten(-1, (len(matrix), -1)).transpose(-1, -2) @ matrix).flatten(-2)
        else:
            # What stands behind the axis is multiplied at once.
            behind //= len(matrix)
            y = matrix @ y.reshape(-1, len(matrix), behind)
    return y.reshape(x.shape).to(x.dtype)


def random_signs(size: int, generator: torch.Generator) -> Tensor:
    """Draw one sign per channel: ±1 [size], float64.

    A Hadamard matrix alone adds all channels up in its first column, where activations that are never negative
    (after a ReLU) would make a new outlier.
    """
    return torch.randint(0, 2, (size,), generator=generator, dtype=torch.float64) * 2 - 1


def rotate(x: Tensor, signs: Tensor) -> Tensor:
    """Multiply the last dimension by the random orthogonal matrix Q = diag(signs) · K.

    To a weight W [out, in] whose input is rotated belongs W · Q = ``rotate(W, signs)``; to one whose output is,
    Qᵀ · W = ``rotate(W.T, signs).T``.
    """
    return hadamard(x * signs)


@functools.cache
def _factors(size: int) -> tuple[_Matrix, ...]:
    """Matrices whose Kronecker product is K: pieces of the power of two that are small to multiply by, and C_m."""
    # As arrays: a tensor made in inference mode could not be kept for one with gradients.
    power = size & -size  # the largest power of two in n
    odd = size // power
    factors = []
    while power > 1:
        piece = min(power, LARGEST_PIECE)
        factors.append(_sylvester(piece))
        power //= piece
    return (*factors, _hartley(odd)) if odd > 1 else tuple(factors)


def _sylvester(size: int) -> _Matrix:
    matrix: _Matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def _hartley(size: int) -> _Matrix:
    index = np.arange(size)
    angle = 2 * np.pi / size * (np.outer(index, index) % size)
    return (np.cos(angle) + np.sin(angle)) / np.sqrt(size)
