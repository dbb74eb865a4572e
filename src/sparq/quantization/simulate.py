"""Simulated (fake-quantised) inference: low-bit grids, ordinary floating-point arithmetic.

What is on a low-bit grid is what SmoothQuant's own simulation puts there: the weights of all linears of the blocks, one
scale per output channel or group of inputs; their inputs, one scale per token, found as they come; and the outputs of
q, k and v (before the rotary embedding, where there is one), so that both factors of q·k and the values, which are also
what the cache is made from, are quantised. Attention probabilities, gates, norms, embeddings and the output layer stay
in full precision. Which grids are symmetric is the method's choice (`QuantizationConfig`).

A simulated model is saved by ``save_pretrained`` and comes back through ``from_pretrained`` once this package is
imported: it is registered with transformers as the quantisation method "sparq".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparq.quantization.blocks import Block, blocks
from sparq.quantization.clipping import TailClipping
from sparq.quantization.config import FULL_PRECISION, QuantizationConfig
from sparq.quantization.hadamard import rotate
from sparq.quantization.quantizer import Quantizer
from sparq.quantization.rotation import restructure

METHOD = "sparq"


class SimulatedLinear(nn.Module):
    """A linear whose input, and output where it makes queries, keys or values, are fake-quantised per token.

    Attributes:
        weight: [out, in], or [in, out] if it was a GPT-2 ``Conv1D``; the very parameter of the linear it replaces.
        bias: [out] or None.
        input_shift: [in], which is taken from the input first; None where there is none, or the norm took it in.
        input_scale: [in], by which the input is divided before it is quantised; None where the scale went into the
            norm before it.
        input_signs: [in], the random signs of a rotation of the input before it is quantised; None where there is
            none, or it is folded into what comes before.
    """

    def __init__(
        self,
        linear: nn.Linear | Conv1D,
        activation: Quantizer | None,
        states: tuple[int, int] | None = None,
        *,
        shifted: bool = False,
        scaled: bool = False,
        rotated: bool = False,
    ) -> None:
        """Take over a linear.

        Args:
            linear: what is replaced; its parameters are shared, not copied.
            activation: quantiser of a token, None for full precision.
            states: layout (groups, parts) of an output of queries, keys and values; None where it is none.
            shifted: whether a shift of its own is taken from the input.
            scaled: whether the input is divided by a scale of its own.
            rotated: whether the input is rotated as it comes; `rotate_input` says how.
        """
        super().__init__()
        self.weight = linear.weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", linear.bias)
        self.transposed = isinstance(linear, Conv1D)
        self.activation = activation
        self.states = states
        self.input_shift: Tensor | None
        self.input_scale: Tensor | None
        self.input_signs: Tensor | None
        self.register_buffer("input_shift", torch.zeros_like(self.matrix[0]).detach() if shifted else None)
        self.register_buffer("input_scale", torch.ones_like(self.matrix[0]).detach() if scaled else None)
        self.register_buffer("input_signs", torch.ones_like(self.matrix[0]).detach() if rotated else None)

    @property
    def matrix(self) -> Tensor:
        """The weight as [out, in]."""
        return self.weight.T if self.transposed else self.weight

    def transformed(self, x: Tensor) -> Tensor:
        """What an input [..., in] is before it is quantised: shifted, scaled, rotated."""
        if self.input_shift is not None:
            x = x - self.input_shift
        if self.input_scale is not None:
            x = x / self.input_scale
        if self.input_signs is not None:
            x = rotate(x, self.input_signs)
        return x

    def factor(self, x: Tensor) -> Tensor:
        """What an input [..., in] is when it meets the weight: transformed and quantised."""
        x = self.transformed(x)
        return x if self.activation is None else self.activation(x)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        y = nn.functional.linear(self.factor(x), self.matrix, self.bias)
        if self.activation is None or self.states is None:
            return y
        groups, parts = self.states
        vectors = y.unflatten(-1, (groups, parts, -1)).transpose(-3, -2).flatten(-2)
        return self.activation(vectors).unflatten(-1, (groups, -1)).transpose(-3, -2).reshape(y.shape)

    @torch.no_grad()
    def rotate_input(self, signs: Tensor) -> None:
        """Rotate the input from now on by signs [in] and a Hadamard transform, and the weight with it."""
        assert self.input_signs is not None
        self.input_signs.copy_(signs)
        self.matrix.copy_(rotate(self.matrix.double(), signs.to(self.matrix.device)))

    @torch.no_grad()
    def round_weight(self, quantizer: Quantizer, clipping: TailClipping | None = None) -> None:
        """Put the weight on its grid, for good."""
        self.matrix.copy_(quantizer(self.matrix, clipping))

    def extra_repr(self) -> str:
        """Width, and what is done to the input, for ``print(model)``."""
        bits = self.activation.bits if self.activation else FULL_PRECISION
        given = {
            "states": self.states,
            "shifted": self.input_shift,
            "scaled": self.input_scale,
            "rotated": self.input_signs,
        }
        return ", ".join([f"activation_bits={bits}", *(name for name, value in given.items() if value is not None)])


@register_quantization_config(METHOD)
class SimulatedQuantizationConfig(QuantizationConfigMixin):
    """The ``quantization_config`` in a saved model's config.json."""

    def __init__(self, quant_method: str = METHOD, **settings: Any) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]  # registered methods are plain strings
        self.__dict__.update(dataclasses.asdict(QuantizationConfig(**settings)))

    @property
    def settings(self) -> QuantizationConfig:
        """The same, as SpARQ's own configuration."""
        return QuantizationConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(QuantizationConfig)})


@register_quantizer(METHOD)
class SimulatedQuantizer(HfQuantizer):
    """Rebuilds a simulated model before ``from_pretrained`` fills in the weights, which are saved on their grids."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        config = self.quantization_config
        assert isinstance(config, SimulatedQuantizationConfig)
        if config.settings.method == "rotation":
            restructure(model)
        replace_linears(model, config.settings)
        return model

    def is_serializable(self) -> bool:
        """Weights are ordinary tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Weights are on a grid that training would leave."""
        return False


def replace_linears(model: PreTrainedModel, config: QuantizationConfig) -> list[Block]:
    """Put a `SimulatedLinear` in place of each linear of the blocks; the function of the weights is unchanged.

    Returns:
        The blocks, as they were found.
    """
    found = blocks(model)
    for block in found:
        replace_linears_of(model, block, config)
    return found


def replace_linears_of(model: PreTrainedModel, block: Block, config: QuantizationConfig) -> None:
    """Put a `SimulatedLinear` in place of each linear of one block."""
    activation = config.activation_quantizer()
    outside = [siblings for siblings in block.smoothed if siblings.norm is None]
    scaled = {name for siblings in outside if config.scales for name in siblings.linears}
    shifted = {name for siblings in outside if config.shifts and siblings.shiftable for name in siblings.linears}
    rotated = {block.mlp_output} if config.method == "rotation" else set()
    for name in block.linears:
        linear: Any = model.get_submodule(name)
        simulated = SimulatedLinear(
            linear,
            activation,
            block.states.get(name),
            shifted=name in shifted,
            scaled=name in scaled,
            rotated=name in rotated,
        )
        model.set_submodule(name, simulated)


def round_weights(model: PreTrainedModel, found: list[Block], config: QuantizationConfig) -> None:
    """Put the weights of the blocks on their grids, each on the nearest level."""
    clipping = config.tail_clipping()
    for block in found:
        for name in block.linears:
            linear: Any = model.get_submodule(name)
            quantizer = config.weight_quantizer(linear.matrix.shape[1])
            if quantizer is not None:
                linear.round_weight(quantizer, clipping)


def mark(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Record in the model how it was quantised, as ``from_pretrained`` does for one that comes from a folder."""
    recorded = SimulatedQuantizationConfig(**dataclasses.asdict(config))
    quantizer = SimulatedQuantizer(recorded)
    quantizer.postprocess_model(model)
    marked: Any = model  # attributes that transformers sets without declaring them
    marked.hf_quantizer, marked.quantization_method, marked.is_quantized = quantizer, METHOD, True
