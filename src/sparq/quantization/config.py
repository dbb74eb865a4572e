"""What is asked of a quantisation: the method and the widths."""

from __future__ import annotations

import dataclasses
from typing import Any

from sparq.errors import UserError

METHODS = ("smoothquant", "round", "rotation")
ROUNDINGS = ("nearest", "gptq")
FULL_PRECISION = 16
WIDTHS = (*range(2, 9), FULL_PRECISION)


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Settings of one simulated post-training quantisation (paper, section 4.1 and appendix E.2).

    Attributes:
        method: what is done before weights are rounded: "smoothquant" (Xiao et al., 2023), "rotation" (QuaRot,
            Ashkboos et al., 2024), or "round": nothing, their baseline.
        weight_bits: width of the weights, 2 to 8, or 16 for no quantisation.
        activation_bits: width of the activations, 2 to 8, or 16 for no quantisation.
        alpha: how much of the difficulty SmoothQuant moves from the activations (0) to the weights (1).
        calibration_sequences: how many sequences SmoothQuant takes the activation ranges from, and GPTQ the inputs.
        rounding: how weights are rounded: each to the "nearest" level, or by "gptq" (Frantar et al., 2023), which
            makes up for the error of a weight in those that are not rounded yet.
        seed: of the random signs of a rotation.

    Raises:
        UserError: a value is out of its range; the message names key and value.
    """

    method: str = "smoothquant"
    weight_bits: int = 8
    activation_bits: int = 8
    alpha: float = 0.5
    calibration_sequences: int = 256
    rounding: str = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            _refuse("method", self.method, f"one of {', '.join(METHODS)}")
        for key in ("weight_bits", "activation_bits"):
            if not _is_integer(getattr(self, key)) or getattr(self, key) not in WIDTHS:
                _refuse(key, getattr(self, key), "2 to 8, or 16 for no quantisation")
        if not isinstance(self.alpha, (int, float)) or isinstance(self.alpha, bool) or not 0 <= self.alpha <= 1:
            _refuse("alpha", self.alpha, "a number from 0 to 1")
        if not _is_integer(self.calibration_sequences) or self.calibration_sequences < 1:
            _refuse("calibration_sequences", self.calibration_sequences, "a whole number of at least 1")
        if self.rounding not in ROUNDINGS:
            _refuse("rounding", self.rounding, f"one of {', '.join(ROUNDINGS)}")
        if self.rounding == "gptq" and self.weight_bits == FULL_PRECISION:
            _refuse("rounding", self.rounding, "'nearest', and there is nothing to round at weight_bits 16")
        if not _is_integer(self.seed) or self.seed < 0:
            _refuse("seed", self.seed, "a whole number of at least 0")

    @property
    def bits(self) -> str:
        """The widths as the paper writes them, for example "W4A4"."""
        return f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def name(self) -> str:
        """The method, and the rounding unless it is to nearest, for example "rotation-gptq"."""
        return self.method if self.rounding == "nearest" else f"{self.method}-{self.rounding}"


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(key: str, value: Any, expected: str) -> None:
    raise UserError(f"quantization.{key}: {value!r} is not {expected}")
