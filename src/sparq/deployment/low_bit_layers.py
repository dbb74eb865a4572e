"""Layers whose weights are low-bit codes, multiplied by torchao's kernels on a processor or a GPU.

What a layer keeps and saves is the same everywhere: codes, and the grids that they count on. How a kernel wants 4 bits
laid out depends on the device, so that is made there, at the first product, and taken back when the layer moves.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from sparq.errors import UserError
from sparq.quantization.quantizer import Quantizer

GROUPS = (128, 64, 32)  # inputs that share a step in 4 bits: the most that fit, of those that all kernels know
_ROWS = 16  # the processor's kernel makes so many outputs at once
_LEVELS, _MIDDLE = 16, 8  # of 4 bits; kernels count from the middle
_GPU_INPUTS, _GPU_TILES = 1024, 8  # inputs are padded to a multiple for the GPU's kernel, which reads so many tiles


def group_size(weight: Tensor) -> int | None:
    """How many inputs of a weight [out, in] share a step in 4 bits; None if the kernels do not take its shape."""
    rows, inputs = weight.shape
    return next((size for size in GROUPS if inputs % size == 0 and rows % _ROWS == 0), None)


class Int8Embedding(nn.Module):
    """A table of 8 bits.

    Attributes:
        codes: int8 [rows, width].
        steps: [rows, 1]; a value is code · step.
    """

    codes: Tensor
    steps: Tensor

    def __init__(self, weight: Tensor) -> None:
        """Round a table [rows, width]; on the meta device it is only given its shape."""
        super().__init__()
        codes, steps = _eight_bits(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("steps", steps)

    @property
    def weight(self) -> Tensor:
        """The table that this stands for, [rows, width]."""
        return self.codes * self.steps

    def forward(self, ids: Tensor) -> Tensor:
        """[...] → [..., width]."""
        return self.codes[ids] * self.steps[ids]


class LowBitLinear(nn.Module):
    """A linear by codes; what is multiplied is made of them at the first product, and dropped when the layer moves."""

    bias: nn.Parameter | None

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_parameter("bias", bias)
        self._operand: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        if self._operand is None:
            self._operand = self._made_operand()
        y = self._product(x)
        return y if self.bias is None else y + self.bias

    def release(self) -> None:
        """Go back to the codes alone."""
        self._operand = None

    @override
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.release()
        return super()._apply(fn, recurse)

    def _made_operand(self) -> Any:
        raise NotImplementedError

    def _product(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._operand)


class Int8Linear(LowBitLinear):
    """A linear of 8 bits whose input is rounded to 8 bits as it comes, with one step for each token.

    Attributes:
        codes: int8 [out, in].
        steps: [out, 1]; a weight is code · step.
        bias: [out] or None.
    """

    codes: Tensor
    steps: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None) -> None:
        """Round a weight [out, in]; on the meta device it is only given its shape."""
        super().__init__(bias)
        codes, steps = _eight_bits(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("steps", steps)

    @property
    def weight(self) -> Tensor:
        """The weight that this stands for, [out, in]."""
        return self.codes * self.steps

    @override
    def _made_operand(self) -> Any:
        return _int8_operand(self.codes, self.steps)


class TiedOutput(LowBitLinear):
    """An output layer that multiplies by the table of the embeddings, in 8 bits, and has nothing of its own to save."""

    def __init__(self, embeddings: Int8Embedding) -> None:
        super().__init__(None)
        self._embeddings = (embeddings,)  # in a tuple, or they would be a part of this layer, too

    @property
    def weight(self) -> Tensor:
        """The weight that this stands for, [out, in]."""
        return self._embeddings[0].weight

    @override
    def _made_operand(self) -> Any:
        return _int8_operand(self._embeddings[0].codes, self._embeddings[0].steps)


class Int4Linear(LowBitLinear):
    """A linear of 4 bits whose product is computed in bfloat16, whatever comes in.

    In use its codes lie where the kernel wants them, and nowhere else.

    Attributes:
        codes: uint8 [out, in / 2], two in a byte, the first in the low bits; None while it is in use.
        grids: bfloat16 [out, in / group, 2], step and middle; a weight is (code − 8) · step + middle.
        bias: [out] or None.
    """

    codes: Tensor | None
    grids: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None = None) -> None:
        """Round a weight [out, in] that has a `group_size`; on the meta device it is only given its shape."""
        super().__init__(bias)
        size = group_size(weight)
        assert size is not None
        self._group, self._shape = size, weight.shape
        codes, grids = _four_bits(weight, size)
        self.register_buffer("codes", _pressed(codes))
        self.register_buffer("grids", grids)
        self.register_state_dict_pre_hook(lambda layer, *_: layer.release())

    @property
    def weight(self) -> Tensor:
        """The weight that this stands for, float32 [out, in]."""
        step, middle = self.grids.float().split(1, dim=-1)
        codes = self._every_code().unflatten(1, (-1, self._group)).float()
        return ((codes - _MIDDLE) * step + middle).flatten(1)

    @override
    def release(self) -> None:
        if self._operand is not None:
            self.codes = _pressed(self._every_code())
        super().release()

    @override
    def _made_operand(self) -> Any:
        operand = self._around(_int4_layout(self._every_code()), self.grids)
        self.codes = None
        return operand

    @override
    def _product(self, x: Tensor) -> Tensor:
        return super()._product(x.bfloat16()).to(x.dtype)

    def _every_code(self) -> Tensor:
        """Codes, uint8 [out, in]; out of the kernel's form by a product with the identity, on a grid of integers."""
        if self.codes is not None:
            return torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(1)
        integers = torch.tensor([1.0, _MIDDLE], device=self.grids.device).expand(self.grids.shape)
        identity = torch.eye(self._shape[1], dtype=torch.bfloat16, device=self.grids.device)
        codes = nn.functional.linear(identity, self._around(self._operand.qdata, integers))
        return codes.T.to(torch.uint8)

    def _around(self, layout: Tensor, grids: Tensor) -> Any:
        """Put torchao's tensor for this device around codes in the kernel's layout."""
        grids, size = grids.bfloat16(), [1, self._group]
        if layout.device.type == "cpu":
            kind = torchao("prototype.quantization.int4").Int4OpaqueTensor
        else:
            kind = torchao("quantization").Int4TilePackedTo4dTensor
            grids = nn.functional.pad(grids, (0, 0, 0, -self._shape[1] % _GPU_INPUTS // size[1]))
        return kind(layout, grids.transpose(0, 1).contiguous(), size, self._shape)


def torchao(part: str) -> Any:
    """Import a part of torchao.

    Raises:
        UserError: it is missing, or another version.
    """
    try:
        return importlib.import_module(f"torchao.{part}")
    except ImportError as error:
        raise UserError("deployment: low bits in torch need torchao; run: pip install 'sparq[deploy]'") from error


def _eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [out, in] and steps [out, 1] of a weight; steps are rounded to its type before values are to them."""
    values, quantizer = weight.detach().float(), Quantizer(8, "channel")
    steps = quantizer.range_parameters(values)[0].to(weight.dtype)
    steps = steps.clamp(min=torch.finfo(weight.dtype).tiny)  # of a row that is nearly nothing
    codes = (values / steps.float()).round().clamp(*quantizer.levels)
    return codes.to(torch.int8), steps


def _four_bits(weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 [out, in] and grids bfloat16 [out, in / size, 2] of a weight.

    Grids go from a group's least value to its greatest. They are rounded to bfloat16, in which kernels compute, before
    values are rounded to them.
    """
    values = weight.detach().float().unflatten(1, (-1, size))
    least, greatest = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    step = ((greatest - least) / (_LEVELS - 1)).bfloat16()
    step = torch.where(step > 0, step, torch.ones_like(step))
    middle = torch.where(greatest > least, least + _MIDDLE * step, least).bfloat16()  # equal values are the middle
    codes = ((values - middle) / step + _MIDDLE).round().clamp(0, _LEVELS - 1)
    return codes.to(torch.uint8).flatten(1), torch.cat((step, middle), dim=-1)


def _pressed(codes: Tensor) -> Tensor:
    """Two codes of 4 bits in a byte."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def _int8_operand(codes: Tensor, steps: Tensor) -> Any:
    parts, tensors = torchao("quantization"), torchao("quantization.quantize_.workflows")
    row = parts.PerRow()
    rounded = tensors.QuantizeTensorToInt8Kwargs(granularity=row)
    return parts.Int8Tensor(codes, steps, [1, codes.shape[1]], steps.dtype, act_quant_kwargs=rounded)


def _int4_layout(codes: Tensor) -> Tensor:
    """Codes [out, in] as the kernel of their device wants them."""
    if codes.device.type == "cpu":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)  # noqa: SLF001
    codes = nn.functional.pad(codes, (0, -codes.shape[1] % _GPU_INPUTS))
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]  # here the first is in the high bits
    return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), _GPU_TILES)  # noqa: SLF001
