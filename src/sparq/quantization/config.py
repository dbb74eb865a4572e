"""What is asked of a quantisation: the method, the rounding and the widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from sparq.errors import UserError
from sparq.quantization.clipping import TailClipping
from sparq.quantization.quantizer import Quantizer

METHODS = ("smoothquant", "rotation", "omniquant", "affinequant", "flatquant", "round")
LEARNT = ("omniquant", "affinequant", "flatquant")
ROUNDINGS = ("nearest", "gptq")
GRIDS = ("symmetric", "asymmetric")
STATE_GRIDS = ("token", "head")
FULL_PRECISION = 16
WIDTHS = (*range(2, 9), FULL_PRECISION)
LEARNT_GROUP_SIZE = 128


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Settings of one simulated post-training quantisation (paper, section 4.1 and appendix E.2).

    Attributes:
        method: what is done besides rounding the weights: "smoothquant" (Xiao et al., 2023), "rotation" (QuaRot,
            Ashkboos et al., 2024), "omniquant" (Shao et al., 2023), "affinequant" (Ma et al., 2024), "flatquant" (Sun
            et al., 2024), or "round": nothing, the baseline of them all.
        weight_bits: width of the weights, 2 to 8, or 16 for no quantisation.
        activation_bits: width of the activations, 2 to 8, or 16 for no quantisation.
        alpha: how much of the difficulty SmoothQuant moves from the activations (0) to the weights (1); the methods
            that learn begin there.
        calibration_sequences: how many sequences the activation ranges and GPTQ's inputs are taken from, or learnt on.
        rounding: how weights are rounded: each to the "nearest" level, or by "gptq" (Frantar et al., 2023), which makes
            up for the error of a weight in those that are not rounded yet; after the learning, if there is one.
        weight_clip_percent: how much of the tail of the weights is cut off by the grid, for the methods that do not
            learn it.
        activation_grid: "symmetric" or "asymmetric"; None for what the method takes: the latter if it learns.
        activation_clip: share of a token's range that the grid of each linear's input covers, for the methods that do
            not learn it (QuaRot takes 0.9).
        state_grids: what shares a scale in the queries, keys and values of a "token": all of its heads, or each "head"
            alone.
        group_size: input channels of a weight that share a scale, in linears whose inputs it divides; 0 for all the
            inputs of an output channel, None for what the method takes: 128 if it learns (paper, E.2), else 0.
        seed: of the random signs of a rotation, and of those that FlatQuant begins with.
        epochs: passes over the calibration sequences for each block, in the methods that learn.
        batch_sequences: sequences in a step of the learning.
        transformation_rate: learning rate of scales, shifts and matrices.
        clipping_rate: learning rate of the learnt clipping.
        stability_factor: weight of what is beside the diagonal of AffineQuant's matrices (paper, E.2).

    Raises:
        UserError: a value is out of its range, or does not go with the others; the message names key and value.
    """

    method: str = "smoothquant"
    weight_bits: int = 8
    activation_bits: int = 8
    alpha: float = 0.5
    calibration_sequences: int = 256
    rounding: str = "nearest"
    weight_clip_percent: float = 0.0
    activation_grid: str | None = None
    activation_clip: float = 1.0
    state_grids: str = "token"
    group_size: int | None = None
    seed: int = 0
    epochs: int = 20
    batch_sequences: int = 1
    transformation_rate: float = 5e-3
    clipping_rate: float = 1e-2
    stability_factor: float = 0.01

    def __post_init__(self) -> None:
        for key, (allowed, expected) in _ALLOWED.items():
            if not allowed(getattr(self, key)):
                _refuse(key, getattr(self, key), expected)
        if self.weight_clip_percent and self.learns:
            _refuse("weight_clip_percent", self.weight_clip_percent, f"0, because {self.method} learns its clipping")
        if self.activation_clip < 1 and self.method == "flatquant":
            _refuse("activation_clip", self.activation_clip, "1, because flatquant learns it")
        if self.activation_bits == FULL_PRECISION:
            for key in ("activation_grid", "activation_clip", "state_grids"):
                if getattr(self, key) != getattr(type(self), key):
                    _refuse(key, getattr(self, key), "of use: there is no grid at activation_bits 16")
        if self.weight_clip_percent and self.weight_bits == FULL_PRECISION:
            _refuse("weight_clip_percent", self.weight_clip_percent, "0, and there is no grid at weight_bits 16")
        if self.rounding == "gptq" and self.weight_bits == FULL_PRECISION:
            _refuse("rounding", self.rounding, "'nearest', and there is nothing to round at weight_bits 16")

    @property
    def learns(self) -> bool:
        """Whether the method learns, block by block."""
        return self.method in LEARNT

    @property
    def scales(self) -> bool:
        """Whether the method scales what the linears read."""
        return self.learns or self.method == "smoothquant"

    @property
    def shifts(self) -> bool:
        """Whether it shifts it besides, which helps asymmetric grids of activations alone."""
        return self.learns and self.activation_bits < FULL_PRECISION

    @property
    def clips(self) -> bool:
        """Whether the grids of activations cover a share of the range, given or learnt."""
        return self.activation_bits < FULL_PRECISION and (self.activation_clip < 1 or self.method == "flatquant")

    def weight_quantizer(self, inputs: int) -> Quantizer | None:
        """Quantiser of a weight [out, in] with so many inputs; None for full precision.

        The methods that learn use asymmetric grids, the others symmetric ones.
        """
        if self.weight_bits == FULL_PRECISION:
            return None
        size = self.group_size
        if size is None:
            size = LEARNT_GROUP_SIZE if self.learns else 0
        if size and inputs % size == 0:
            return Quantizer(self.weight_bits, "group", not self.learns, size)
        return Quantizer(self.weight_bits, "channel", not self.learns)

    def tail_clipping(self) -> TailClipping | None:
        """Where the grid of a weight ends, if that is before its largest value."""
        return TailClipping(self.weight_clip_percent) if self.weight_clip_percent else None

    def activation_quantizer(self) -> Quantizer | None:
        """Quantiser of a token; None for full precision."""
        if self.activation_bits == FULL_PRECISION:
            return None
        symmetric = not self.learns if self.activation_grid is None else self.activation_grid == "symmetric"
        return Quantizer(self.activation_bits, "token", symmetric)

    @property
    def bits(self) -> str:
        """The widths as the paper writes them, for example "W4A4"."""
        return f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def name(self) -> str:
        """The method, and what is unusual in its rounding and grids, for example "rotation-gptq" or "round-clip1"."""
        rounding = "" if self.rounding == "nearest" else f"-{self.rounding}"
        clipping = f"-clip{self.weight_clip_percent:g}" if self.weight_clip_percent else ""
        grid = f"-{self.activation_grid}" if self.activation_grid else ""
        share = f"-share{self.activation_clip:g}" if self.activation_clip < 1 else ""
        heads = "-heads" if self.state_grids == "head" else ""
        return self.method + rounding + clipping + grid + share + heads


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _counts(value: Any) -> bool:
    return _is_integer(value) and value >= 1


def _is_rate(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1


_COUNT = _counts, "a whole number of at least 1"
_RATE = _is_rate, "a number above 0 and at most 1"
_WIDTH = (lambda value: _is_integer(value) and value in WIDTHS), "2 to 8, or 16 for no quantisation"
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": (lambda value: value in METHODS, f"one of {', '.join(METHODS)}"),
    "weight_bits": _WIDTH,
    "activation_bits": _WIDTH,
    "alpha": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "calibration_sequences": _COUNT,
    "rounding": (lambda value: value in ROUNDINGS, f"one of {', '.join(ROUNDINGS)}"),
    "weight_clip_percent": (lambda value: _is_number(value) and 0 <= value < 100, "a number from 0 to below 100"),
    "activation_grid": (lambda value: value is None or value in GRIDS, f"one of {', '.join(GRIDS)}, or none"),
    "activation_clip": _RATE,
    "state_grids": (lambda value: value in STATE_GRIDS, f"one of {', '.join(STATE_GRIDS)}"),
    "group_size": (lambda value: value is None or (_is_integer(value) and value >= 0), "a whole number, or none"),
    "seed": (lambda value: _is_integer(value) and value >= 0, "a whole number of at least 0"),
    "epochs": _COUNT,
    "batch_sequences": _COUNT,
    "transformation_rate": _RATE,
    "clipping_rate": _RATE,
    "stability_factor": _RATE,
}


def _refuse(key: str, value: Any, expected: str) -> None:
    raise UserError(f"quantization.{key}: {value!r} is not {expected}")
