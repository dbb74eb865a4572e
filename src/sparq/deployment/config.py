"""What is asked of a deployment: the width of the weights, and of what they are multiplied by."""

from __future__ import annotations

import dataclasses
from typing import Any

from sparq.errors import UserError
from sparq.quantization.blocks import DEPLOYED

RECORD = DEPLOYED  # in config.json
FULL = 32
# What computes → width of the weights → what they are multiplied by, the usual first.
ENGINES: dict[str, dict[int, tuple[str, ...]]] = {
    "onnx": {4: ("int8", "float32"), 8: ("int8", "float32"), FULL: ("float32", "int8")},
    "torch": {4: ("bfloat16",), 8: ("int8",)},
}
_WIDTHS = {"int8": 8, "bfloat16": 16, "float32": FULL}


@dataclasses.dataclass(frozen=True)
class DeploymentConfig:
    """How a language model is deployed.

    Attributes:
        bits: width of the weights and embeddings: 4, 8, or (onnx alone) 32 for the model as it is. Of 4, the output
            layer (and embeddings tied to it; with torch all embeddings) take 8: on speechlm-max that gives a quarter of
            the lost perplexity back for a twentieth more bytes.
        activations: what a low-bit weight is multiplied by; None for what the engine is fast at. "int8" rounds the
            input of every product to 8 bits as it comes (onnx: a scale for each row and block of it; torch: for each
            row); "float32" leaves it as it is, and is far slower; "bfloat16" is what torch multiplies 4 bits by.
        engine: "onnx" writes a graph for ONNX Runtime, on a CPU; "torch" leaves a torch model, with torchao's kernels,
            on a CPU or GPU.

    Raises:
        UserError: a value is unknown, or not among those of the engine; the message names key and value.
    """

    bits: int = 4
    activations: str | None = None
    engine: str = "onnx"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UserError(f"deployment.engine: {self.engine!r} is not one of {', '.join(ENGINES)}")
        widths = ENGINES[self.engine]
        if isinstance(self.bits, bool) or self.bits not in widths:
            known = ", ".join(map(str, widths))
            raise UserError(f"deployment.bits: {self.bits!r} is not one of {known} (engine {self.engine})")
        if self.activations not in {None, *widths[self.bits]}:
            known = f"{', '.join(widths[self.bits])} (engine {self.engine}, {self.bits} bits)"
            raise UserError(f"deployment.activations: {self.activations!r} is not one of {known}")

    def require(self, engine: str) -> None:
        """Refuse to be used for another engine.

        Raises:
            UserError: naming the engine.
        """
        if self.engine != engine:
            raise UserError(f"deployment.engine: {self.engine!r} (this deploys by {engine!r})")

    @property
    def packed(self) -> bool:
        """Whether weights are in low bits."""
        return self.bits < FULL

    @property
    def output_bits(self) -> int:
        """Width of the output layer."""
        return max(self.bits, 8)

    @property
    def inputs(self) -> str:
        """What weights are multiplied by."""
        return (self.packed and self.activations) or ENGINES[self.engine][self.bits][0]

    def record(self) -> dict[str, Any]:
        """What stands in config.json and sparq.json."""
        return {"bits": self.bits, "activations": self.inputs, "engine": self.engine}

    @property
    def accuracy_level(self) -> int:
        """What ONNX Runtime's ``MatMulNBits`` calls the precision of its inputs."""
        return 4 if self.inputs == "int8" else 0

    @property
    def name(self) -> str:
        """The widths, for example "W4A8"."""
        return f"W{self.bits}A{_WIDTHS[self.inputs]}"
