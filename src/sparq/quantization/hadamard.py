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


def hadamard(x: Tensor) -> Tensor:
    """Multiply the last dimension by K, in k · n additions and m · n products; done twice it gives ``x`` back.

    Args:
        x: [..., n], floating point; n at least 1.

    Returns:
        [..., n], of the dtype of ``x``; half precision is added up in float32.
    """
    size = x.shape[-1]
    power = size & -size  # the largest power of two in n
    odd = size // power
    y = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (power, odd))
    if odd > 1:
        y = y @ torch.as_tensor(_hartley(odd), dtype=y.dtype, device=y.device)
    half = power // 2
    while half:
        upper, lower = y.unflatten(-2, (-1, 2, half)).unbind(-3)
        y = torch.stack((upper + lower, upper - lower), -3).flatten(-4, -2)
        half //= 2
    return (y.flatten(-2) / math.sqrt(power)).to(x.dtype)


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
def _hartley(size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    # As an array: a tensor made in inference mode could not be kept for one with gradients.
    index = np.arange(size)
    angle = 2 * np.pi / size * (np.outer(index, index) % size)
    return (np.cos(angle) + np.sin(angle)) / np.sqrt(size)
