"""Weights as low-bit codes: blocks of inputs with a step and a zero point each, as ``MatMulNBits`` stores them.

A value is (code − zero point) · step. Blocks lie along the inputs of each output channel; 32 values share a step. A
weight that simulated quantisation has put on a grid is taken over exactly: its grid is read back from its values.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import torch
from torch import Tensor

from sparq.errors import UserError
from sparq.quantization.quantizer import Quantizer

BLOCKS = (32, 16)
_EXACT = 1e-2  # of a step: how far a value in float32 is off its grid by rounding alone
# What a value loses in float32, float16 and bfloat16, as a share of itself; at most so much of a step is believed.
_BLURS, _BLURRED = (0.0, 2.0**-10, 2.0**-7), 0.2


@dataclasses.dataclass(frozen=True)
class Packed:
    """A weight [out, in] in low bits.

    Attributes:
        bits: 4 or 8.
        block: inputs that share a step.
        codes: uint8 [out, in].
        steps: float32 [out, in / block].
        zero_points: uint8 [out, in / block].
    """

    bits: int
    block: int
    codes: np.ndarray
    steps: np.ndarray
    zero_points: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.codes.shape
        return rows, columns

    def unpacked(self) -> np.ndarray:
        """The weight that this stands for, float32 [out, in]."""
        codes = self.codes.reshape(*self.steps.shape, self.block).astype(np.float32)
        return ((codes - self.zero_points[..., None]) * self.steps[..., None]).reshape(self.shape)

    @functools.cached_property
    def code_bytes(self) -> np.ndarray:
        """Codes as they are stored: uint8 [out, in / block, block · bits / 8], the first value in the low bits."""
        return _pressed(self.codes.reshape(*self.steps.shape, self.block), self.bits)

    @functools.cached_property
    def zero_point_bytes(self) -> np.ndarray:
        """Zero points as they are stored: uint8 [out, ⌈in / block · bits / 8⌉]."""
        odd = self.steps.shape[1] % 2 if self.bits == 4 else 0
        return _pressed(np.pad(self.zero_points, ((0, 0), (0, odd))), self.bits)


def _pressed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Two codes of 4 bits in a byte."""
    return codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4


def block_size(inputs: int, name: str) -> int:
    """How many of so many inputs share a step.

    Raises:
        UserError: naming what has them; they cannot be cut into blocks.
    """
    for size in BLOCKS:
        if inputs % size == 0:
            return size
    raise UserError(f"{name}: has {inputs} inputs, and low bits need a multiple of {BLOCKS[-1]}; deploy with 32 bits")


def pack(weight: Tensor, bits: int, name: str, simulated: Quantizer | None = None) -> Packed:
    """Put a weight into low bits.

    Args:
        weight: [out, in].
        bits: 4 or 8.
        name: of the weight, for errors.
        simulated: the quantiser that has put it on its grid; None if it is in full precision. If codes of so many bits
            can hold that grid, they hold it exactly.

    Raises:
        UserError: the inputs cannot be cut into blocks, or a value is not finite.
    """
    weight = weight.detach().float().cpu()
    if not bool(weight.isfinite().all()):
        raise UserError(f"{name}: holds a value that is not finite")
    size = block_size(weight.shape[1], name)
    quantizer = Quantizer(bits, "group", symmetric=False, group_size=size)
    found = _own_grid(weight, simulated, bits, size) if simulated else None
    steps, zero_points = found or quantizer.range_parameters(quantizer.grouped(weight))
    codes = (quantizer.grouped(weight) / steps).round() + zero_points
    return Packed(
        bits,
        size,
        codes.clamp(0, 2**bits - 1).to(torch.uint8).reshape(weight.shape).numpy(),
        steps.squeeze(-1).contiguous().numpy(),
        torch.as_tensor(zero_points).to(torch.uint8).squeeze(-1).contiguous().numpy(),
    )


def _own_grid(weight: Tensor, simulated: Quantizer, bits: int, size: int) -> tuple[Tensor, Tensor] | None:
    """Read the grid of a rounded weight back from its values: step and zero point for each block [out, blocks, 1].

    All values are whole steps apart, so what shares a step spans n of them, for some n up to 2^bits − 1. The largest n
    that fits is taken; where a coarser grid fits too, it is one of the same values. Weights that were saved in half
    precision since lie a little beside their grid, the larger the further.

    Returns:
        None where there is no such n, or blocks do not fit into what shares a step.
    """
    values = simulated.grouped(weight) if simulated.granularity == "group" else weight[:, None]
    if values.shape[-1] % size:
        return None
    smallest, largest = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
    steps = torch.where(largest > smallest, 0.0, 1.0)
    for blur, n in itertools.product(_BLURS, range(2**bits - 1, 0, -1)):
        left = steps == 0
        if not bool(left.any()):
            break
        step = (largest - smallest)[left] / n
        levels = values[left] / step[:, None]
        allowed = _EXACT + (blur * levels.abs()).clamp(max=_BLURRED)
        fits = ((levels - levels.round()).abs() <= allowed).all(-1)
        steps[left] = torch.where(fits, step, 0.0)
    if not bool((steps > 0).all()):
        return None
    zero_points = (-smallest / steps).round()
    shared = values.shape[-1] // size
    return steps.repeat_interleave(shared, 1)[..., None], zero_points.repeat_interleave(shared, 1)[..., None]


def stacked(weights: list[Packed]) -> Packed:
    """Put weights of the same inputs under each other, to be one product."""
    first = weights[0]
    codes, steps, zeros = (
        np.concatenate([getattr(one, name) for one in weights]) for name in ("codes", "steps", "zero_points")
    )
    return Packed(first.bits, first.block, codes, steps, zeros)
