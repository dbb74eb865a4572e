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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparq.quantization.blocks import Block, blocks, matrix
from sparq.quantization.clipping import TailClipping, shrunk
from sparq.quantization.config import FULL_PRECISION, QuantizationConfig
from sparq.quantization.hadamard import rotate
from sparq.quantization.kronecker import factor_sizes, kronecker
from sparq.quantization.quantizer import Quantizer
from sparq.quantization.rotation import restructure

METHOD = "sparq"


@dataclasses.dataclass(frozen=True)
class Online:
    """What a linear does as its input comes, and as its output leaves, besides quantising: which buffers it has.

    Attributes:
        shifted: whether a shift of its own is taken from the input.
        scaled: whether the input is divided by a scale of its own.
        rotated: whether the input is rotated by signs and a Hadamard transform.
        factors: sizes of the Kronecker factors that the input is multiplied by, the second None for the identity;
            None for no factors.
        clip: share of each token's range that the grid of the input covers at first; None for all of it, always.
        heads: of each part of the output.
        by_head: whether each head of the output has a scale of its own.
        turned: whether each head of the output is on its grid in a basis of its own.
        states_clipped: whether the grids of the output cover a learnt share of their range.
    """

    shifted: bool = False
    scaled: bool = False
    rotated: bool = False
    factors: tuple[int, int | None] | None = None
    clip: float | None = None
    heads: int = 1
    by_head: bool = False
    turned: bool = False
    states_clipped: bool = False


class SimulatedLinear(nn.Module):
    """A linear whose input, and output where it makes queries, keys or values, are fake-quantised per token.

    The buffers are None where there is nothing of their kind to be done, or where it is folded into what comes before.

    Attributes:
        weight: [out, in], or [in, out] if it was a GPT-2 ``Conv1D``; the very parameter of the linear it replaces.
        bias: [out] or None.
        input_shift: [in], which is taken from the input first.
        input_scale: [in], by which the input is divided then.
        input_signs: [in], the random signs of a rotation of the input.
        input_left: L [m, m]; the input is multiplied by L ⊗ R before it is quantised.
        input_right: R [in / m, in / m]; None for the identity.
        input_clip: [2], the shares of a token's least and greatest value that its grid covers.
        state_basis: P [parts, heads, width, width]; the output of each head is on its grid as y·P.
        state_inverse: P⁻¹, which takes it back.
        state_clip: [parts, 1, 2], as ``input_clip`` for each part of the output.
        scales: how many scales each part of the output of a token has, all of its heads sharing one, or each its own.
    """

    input_shift: Tensor | None
    input_scale: Tensor | None
    input_signs: Tensor | None
    input_left: Tensor | None
    input_right: Tensor | None
    input_clip: Tensor | None
    state_basis: Tensor | None
    state_inverse: Tensor | None
    state_clip: Tensor | None

    def __init__(
        self,
        linear: nn.Linear | Conv1D,
        activation: Quantizer | None,
        states: tuple[int, int] | None = None,
        online: Online | None = None,
    ) -> None:
        """Take over a linear.

        Args:
            linear: what is replaced; its parameters are shared, not copied.
            activation: quantiser of a token, None for full precision.
            states: layout (groups, parts) of an output of queries, keys and values; None where it is none.
            online: what else it does; nothing changes until the buffers are filled.
        """
        super().__init__()
        self.weight = linear.weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", linear.bias)
        self.transposed = isinstance(linear, Conv1D)
        self.activation = activation
        self.states = states
        online = online or Online()
        of = self.matrix.detach()
        ones, eye = of.new_ones, partial(torch.eye, dtype=of.dtype, device=of.device)
        inputs, (left, right), parts = of.shape[1], online.factors or (None, None), states[1] if states else None
        self.scales = online.heads if online.by_head else 1
        bases = None
        if online.turned and parts:
            bases = eye(of.shape[0] // parts // online.heads).repeat(parts, online.heads, 1, 1)
        for name, value in {
            "input_shift": of.new_zeros(inputs) if online.shifted else None,
            "input_scale": ones(inputs) if online.scaled else None,
            "input_signs": ones(inputs) if online.rotated else None,
            "input_left": eye(left) if left else None,
            "input_right": eye(right) if right else None,
            "input_clip": None if online.clip is None else online.clip * ones(2),
            "state_basis": bases,
            "state_inverse": None if bases is None else bases.clone(),
            "state_clip": ones(parts, 1, 2) if online.states_clipped and parts else None,
        }.items():
            self.register_buffer(name, value)

    @property
    def matrix(self) -> Tensor:
        """The weight as [out, in]."""
        return self.weight.T if self.transposed else self.weight

    def transformed(self, x: Tensor) -> Tensor:
        """What an input [..., in] is before it is quantised: shifted, scaled, turned."""
        if self.input_shift is not None:
            x = x - self.input_shift
        if self.input_scale is not None:
            x = x / self.input_scale
        if self.input_signs is not None:
            x = rotate(x, self.input_signs)
        if self.input_left is not None:
            x = kronecker(x, self.input_left, self.input_right)
        return x

    def factor(self, x: Tensor) -> Tensor:
        """What an input [..., in] is when it meets the weight: transformed and quantised."""
        x = self.transformed(x)
        return x if self.activation is None else _on_grid(x, self.activation, self.input_clip)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        y = nn.functional.linear(self.factor(x), self.matrix, self.bias)
        if self.activation is None or self.states is None:
            return y
        groups, parts = self.states
        vectors = y.unflatten(-1, (groups, parts, -1)).transpose(-3, -2).flatten(-2)
        if self.state_basis is not None:
            vectors = _by_head(vectors, self.state_basis)
        scaled = vectors.unflatten(-1, (self.scales, -1))
        vectors = _on_grid(scaled, self.activation, self.state_clip).flatten(-2)
        if self.state_inverse is not None:
            vectors = _by_head(vectors, self.state_inverse)
        return vectors.unflatten(-1, (groups, -1)).transpose(-3, -2).reshape(y.shape)

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
        """Width, and what is done besides, for ``print(model)``."""
        bits = self.activation.bits if self.activation else FULL_PRECISION
        given = {
            "states": self.states,
            "shifted": self.input_shift,
            "scaled": self.input_scale,
            "rotated": self.input_signs,
            "transformed": self.input_left,
            "states_transformed": self.state_basis,
            "clipped": self.input_clip,
            "scales_by_head": self.scales > 1 or None,
        }
        return ", ".join([f"activation_bits={bits}", *(name for name, value in given.items() if value is not None)])


def _on_grid(x: Tensor, quantizer: Quantizer, clip: Tensor | None) -> Tensor:
    """Quantise tokens, on the part of their range that a clip [..., 2] leaves."""
    return quantizer(x) if clip is None else quantizer(x, shrunk(quantizer, clip[..., :1], clip[..., 1:]))


def _by_head(x: Tensor, bases: Tensor) -> Tensor:
    """Multiply each head of [..., parts, heads · width] by a matrix of its own, of [parts, heads, width, width]."""
    heads = x.unflatten(-1, (bases.shape[1], -1))
    return torch.einsum("...phi,phij->...phj", heads, bases).flatten(-2)


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
    for name in block.linears:
        linear: Any = model.get_submodule(name)
        online = _online(block, name, config, inputs=matrix(linear).shape[1])
        model.set_submodule(name, SimulatedLinear(linear, activation, block.states.get(name), online))


def _online(block: Block, name: str, config: QuantizationConfig, inputs: int) -> Online:
    """What a method leaves to be done by one linear of a block, as its input comes."""
    # What the norm before it cannot take in.
    outside = next((s for s in block.smoothed if name in s.linears and s.norm is None), None)
    attention = block.attention
    online = Online(
        shifted=config.shifts and outside is not None and outside.shiftable,
        scaled=config.scales and outside is not None,
        rotated=config.method == "rotation" and name == block.mlp_output,
        clip=config.activation_clip if config.clips else None,
        heads=attention.heads_of(name),
        by_head=config.state_grids == "head",
    )
    if config.method != "flatquant":
        return online
    return dataclasses.replace(
        online,
        scaled=online.scaled or name == block.mlp_output,
        factors=(inputs // attention.width, None) if name == attention.output else factor_sizes(inputs),
        turned=not attention.direct_scores and attention.makes_scores(name),
        states_clipped=config.clips,
    )


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
