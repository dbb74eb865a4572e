"""Frozen linears whose weights are held in 8 or 4 bits, by bitsandbytes (an optional package), for QLoRA.

4 bits are NF4 with one float32 scale for 64 weights (Dettmers et al. 2023; without the second quantisation, of the
scales), 8 bits are the weights of LLM.int8 (Dettmers et al. 2022): integers with one scale per output channel, taken of
the weights in half precision. Products are computed with the weights unpacked, in the precision of the input, which is
what QLoRA does (equation 5 there), and bitsandbytes with 8 bits when it trains on a processor. Activations are not
quantised, so the gradient is that of the forward pass, and the merged model is the one that was trained.

The modules of bitsandbytes are not used. In an evaluation between training steps, on processors that multiply in
bfloat16, they repack 4-bit weights for such products for good; and they round biases to the input's precision for good.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sparq.errors import UserError
from sparq.quantization.normal_float import BLOCK, fake_normal_float

NF4_BITS = 4
INT8_LEVELS = 127
Grid = Callable[[Tensor], Tensor]


def require_bitsandbytes() -> ModuleType:
    """Import the functions of bitsandbytes.

    Raises:
        UserError: it is not installed.
    """
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise UserError(
            "adaptation.method: qlora needs the package bitsandbytes (pip install 'sparq[qlora]')"
        ) from error
    return functional


def storage_grid(bits: int) -> Grid:
    """Give the function that puts a weight [out, in] where packing it would, without bitsandbytes, on any device."""
    return fake_normal_float if bits == NF4_BITS else _fake_int8


def _fake_int8(weight: Tensor) -> Tensor:
    """Round as LLM.int8 does; half precision is so coarse that ties are common, and fall by the order of operations."""
    values = weight.half().float()
    largest = values.abs().amax(1, keepdim=True)
    numbers = (values * (INT8_LEVELS / torch.where(largest > 0, largest, 1))).round()
    return (numbers * largest / INT8_LEVELS).to(weight.dtype)


class _UnpackedProduct(torch.autograd.Function):
    """``x · weightᵀ`` that keeps the packed weight for its backward pass, and unpacks it again there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: PackedLinear) -> Tensor:
        ctx.linear, ctx.dtype = linear, x.dtype
        return nn.functional.linear(x, linear.matrix(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient @ ctx.linear.matrix(gradient.dtype)).to(ctx.dtype), None


class PackedLinear(nn.Module):
    """A frozen linear with a weight in 8 or 4 bits.

    Attributes:
        bits: 8 or 4.
        shape: (out, in) of the weight.
        packed: int8 [out, in], or uint8 [⌈out·in / 2⌉, 1] with two weights in a byte.
        scale: float32; [out], or one for each block of 64.
        bias: [out] or None, in full precision; the very parameter of the linear that was packed.
    """

    def __init__(self, linear: nn.Linear | Conv1D, bits: int) -> None:
        """Pack a linear.

        Raises:
            UserError: bitsandbytes is not installed.
        """
        super().__init__()
        functional = require_bitsandbytes()
        self.bits = bits
        self.transposed = isinstance(linear, Conv1D)
        self.dtype = linear.weight.dtype
        weight = linear.weight.detach().T if self.transposed else linear.weight.detach()
        self.shape = weight.shape
        if bits == NF4_BITS:
            packed, state = functional.quantize_4bit(weight.float().contiguous(), blocksize=BLOCK, quant_type="nf4")
            scale = state.absmax
        else:
            packed, scale, _ = functional.int8_vectorwise_quant(weight.half().contiguous())
        # Parameters and not buffers, which DistributedDataParallel would send around before every step.
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", linear.bias)

    @property
    def bytes(self) -> int:
        """Memory of the weight."""
        return self.packed.nbytes + self.scale.nbytes

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Unpack the weight [out, in]."""
        functional = require_bitsandbytes()
        if self.bits != NF4_BITS:
            return functional.int8_vectorwise_dequant(self.packed, self.scale).to(dtype)
        # As one vector: for matrices whose width is a multiple of 16 but not of 64, bitsandbytes 0.50's kernel for
        # processors with AVX-512 takes the wrong scales.
        state = functional.QuantState(
            self.scale, torch.Size([self.shape.numel()]), blocksize=BLOCK, quant_type="nf4", dtype=torch.float32
        )
        return functional.dequantize_4bit(self.packed, state).view(self.shape).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _UnpackedProduct.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def unpack(self) -> nn.Linear | Conv1D:
        """Make an ordinary linear of the kind and precision that was packed."""
        outputs, inputs = self.shape
        weight = self.matrix(self.dtype)
        if self.transposed:
            linear: Any = Conv1D(outputs, inputs)
            weight = weight.T.contiguous()
        else:
            linear = nn.Linear(inputs, outputs, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.register_parameter("bias", self.bias)
        return linear

    def extra_repr(self) -> str:
        """Shape and width, for ``print(model)``."""
        return f"in_features={self.shape[1]}, out_features={self.shape[0]}, bits={self.bits}"
