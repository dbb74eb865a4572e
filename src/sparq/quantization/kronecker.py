"""Products with L ⊗ R: a matrix over all channels of an input, at the cost of two small ones.

A whole matrix of n channels takes n² products a token and as many numbers; with n = m·k, L of m and R of k it is
n·(m + k) products and m² + k² numbers, and the inverse is that of the factors: (L ⊗ R)⁻¹ = L⁻¹ ⊗ R⁻¹ (FlatQuant, Sun
et al., 2024, section 3.1).
"""

from __future__ import annotations

import math

from torch import Tensor


def factor_sizes(size: int) -> tuple[int, int]:
    """Split a size into m·k, as near to each other as they can be, m the smaller: the cheapest product."""
    small = next(m for m in range(math.isqrt(size), 0, -1) if size % m == 0)
    return small, size // small


def kronecker(x: Tensor, left: Tensor, right: Tensor | None = None) -> Tensor:
    """Multiply the last dimension by L ⊗ R.

    Args:
        x: [..., m · k]; channel i·k + j is row i and column j of a matrix X, of which LᵀXR is made.
        left: L [m, m].
        right: R [k, k]; None for the identity.
    """
    rows = x.unflatten(-1, (len(left), -1))
    if right is not None:
        rows = rows @ right
    return (left.mT @ rows).flatten(-2)
