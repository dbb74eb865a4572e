"""PyTorch's fused attention operators, brought to one form that gives the log-sum-exp of every row.

The flash operator on CPUs (float64, float32, bfloat16, float16); on CUDA the flash operator for half precision
without a mask, else the memory-efficient one. None fits float64 on CUDA, a head dimension there that is not a multiple
of 8, and other devices.
"""

# ruff: noqa: SLF001, D102 - the log-sum-exp is returned only by the operators under scaled_dot_product_attention;
# what forward and backward do is said once, in Kernel

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

Gradients = tuple[Tensor, Tensor, Tensor]


class Rows(NamedTuple):
    """What a kernel's forward pass returns; a row that sees nothing has an output and a log-sum-exp of zero.

    Attributes:
        output: [batch, heads, q_length, head_dim].
        lse: log-sum-exp of the scores [batch, heads, q_length], in at least float32.
        extras: what the kernel's backward pass wants back.
    """

    output: Tensor
    lse: Tensor
    extras: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An operator and what it needs to know besides queries, keys and values.

    Attributes:
        mask: additive, [batch or 1, heads or 1, q_length, k_length], −inf where hidden, in the queries' dtype.
        causal: hide later positions (never together with a mask).
        scale: factor of the scores.
    """

    mask: Tensor | None
    causal: bool
    scale: float

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Rows:
        """Attend with the ordinary softmax."""
        raise NotImplementedError

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Gradients:
        """Give the gradients of queries, keys and values for the output and log-sum-exp in ``rows``."""
        raise NotImplementedError


class FlashCpu(Kernel):
    """Takes masks and grouped heads."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Rows:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return Rows(*operator(q, k, v, 0.0, self.causal, attn_mask=self.mask, scale=self.scale))

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Gradients:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        output, lse, _ = rows
        return operator(grad, q, k, v, output, lse, 0.0, self.causal, attn_mask=self.mask, scale=self.scale)


class FlashCuda(Kernel):
    """Takes grouped heads but no mask, and half precision only."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Rows:
        operator = torch.ops.aten._scaled_dot_product_flash_attention
        output, lse, *extras = operator(q, k, v, 0.0, self.causal, False, scale=self.scale)
        return Rows(output, lse, tuple(extras[:6]))

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Gradients:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_backward
        output, lse, (*lengths, seed, offset) = rows
        return operator(grad, q, k, v, output, lse, *lengths, 0.0, self.causal, seed, offset, scale=self.scale)


class EfficientCuda(Kernel):
    """Takes masks but no grouped heads. Its log-sum-exp is padded to a multiple of 32 rows."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Rows:
        operator = torch.ops.aten._scaled_dot_product_efficient_attention
        bias = self._bias(q, k)
        output, padded, *random = operator(q, k, v, bias, True, 0.0, self.causal, scale=self.scale)
        lse = padded[..., : q.shape[2]]
        if self.mask is not None:
            blind = (self.mask == -math.inf).all(-1)
            output, lse = output.masked_fill(blind[..., None], 0), lse.masked_fill(blind, 0)
        return Rows(output, lse, (*random, padded.shape[-1]))

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Gradients:
        operator = torch.ops.aten._scaled_dot_product_efficient_attention_backward
        seed, offset, length = rows.extras
        lse = pad(rows.lse, (0, length - q.shape[2]), value=math.inf)
        wanted = [True, True, True, False]
        bias = self._bias(q, k)
        grads = operator(
            grad, q, k, v, bias, rows.output, lse, seed, offset, 0.0, wanted, self.causal, scale=self.scale
        )
        return grads[0], grads[1], grads[2]

    def _bias(self, q: Tensor, k: Tensor) -> Tensor | None:
        """Give the mask for every batch and head, its rows starting at multiples of 16 as the operator asks."""
        if self.mask is None:
            return None
        columns = k.shape[2]
        aligned = pad(self.mask.expand(*self.mask.shape[:-1], columns), (0, -columns % 16))[..., :columns]
        return aligned.expand(q.shape[0], q.shape[1], q.shape[2], columns)


def choose(query: Tensor, mask: Tensor | None) -> type[Kernel] | None:
    """Choose the kernel that can take a query [batch, heads, q_length, head_dim] and a mask; None if none can."""
    if query.device.type == "cpu":
        return FlashCpu
    if query.device.type != "cuda" or query.dtype == torch.float64 or query.shape[-1] % 8:
        return None
    half = query.dtype in (torch.float16, torch.bfloat16)
    ampere = torch.cuda.get_device_capability(query.device) >= (8, 0)
    if half and mask is None and ampere and query.shape[-1] <= 256:
        return FlashCuda
    return EfficientCuda if ampere or query.dtype != torch.bfloat16 else None
