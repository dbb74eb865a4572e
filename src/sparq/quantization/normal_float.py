"""NF4, the 4-bit data type of QLoRA (Dettmers et al. 2023, section 3 and appendix E).

Its 16 levels are quantiles of the standard normal distribution, so that normally distributed weights use each about
equally often: 8 from 0 to 1 and 8 from −1 to 0, which share the zero. Blocks of 64 values, in the order in which a
weight [out, in] lies in memory, share a scale: their largest magnitude, which so stays exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
# To the digits that were published: everyone's NF4 is this table, rounding errors of its making included.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def fake_normal_float(x: Tensor) -> Tensor:
    """Put values on the NF4 grid, in blocks of 64 (the last one may be shorter), on any device.

    What it gives is on the grid: to put it there again changes nothing.

    Args:
        x: floating-point values of any shape, taken in row-major order.

    Returns:
        Values of the shape and dtype of ``x``.
    """
    flat = x.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(LEVELS, device=x.device)
    # A block of zeros has no scale; any will do.
    nearest = torch.bucketize(blocks / torch.where(scale > 0, scale, 1), (levels[:-1] + levels[1:]) / 2)
    return (levels[nearest] * scale).flatten()[: flat.numel()].view(x.shape).to(x.dtype)
