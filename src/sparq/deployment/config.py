"""What is asked of a deployment: the width of the weights, and of what they are multiplied by."""

from __future__ import annotations

import dataclasses

from sparq.errors import UserError
from sparq.quantization.blocks import DEPLOYED

RECORD = DEPLOYED  # in config.json
BITS = (4, 8, 32)
ACTIVATIONS = ("int8", "float32")
FULL = 32


@dataclasses.dataclass(frozen=True)
class DeploymentConfig:
    """How a language model is written as a graph for ONNX Runtime.

    Attributes:
        bits: width of the weights and embeddings: 4, 8, or 32 for the model as it is. Of 4, the output layer (and
            embeddings tied to it) take 8: on speechlm-max that gives a quarter of the lost perplexity back for a
            twentieth more bytes.
        activations: what a low-bit weight is multiplied by. "int8" rounds the input of every product to 8 bits, one
            scale for each row and block of it, which is what processors are fast at; "float32" leaves it as it is,
            and is far slower.

    Raises:
        UserError: a value is unknown; the message names key and value.
    """

    bits: int = 4
    activations: str = "int8"

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in BITS:
            raise UserError(f"deployment.bits: {self.bits!r} is not one of {', '.join(map(str, BITS))}")
        if self.activations not in ACTIVATIONS:
            raise UserError(f"deployment.activations: {self.activations!r} is not one of {', '.join(ACTIVATIONS)}")

    @property
    def packed(self) -> bool:
        """Whether weights are in low bits."""
        return self.bits < FULL

    @property
    def output_bits(self) -> int:
        """Width of the output layer."""
        return max(self.bits, 8)

    @property
    def accuracy_level(self) -> int:
        """What ONNX Runtime's ``MatMulNBits`` calls the precision of its inputs."""
        return 4 if self.activations == "int8" else 0

    @property
    def name(self) -> str:
        """The widths, for example "W4A8"."""
        return f"W{self.bits}A{8 if self.packed and self.activations == 'int8' else FULL}"
