"""What a deployment takes from a language model: its linears, in the width that was asked for, or why it cannot."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparq.attention.install import require_installed
from sparq.attention.settings import AttentionSettings
from sparq.deployment.config import DeploymentConfig
from sparq.deployment.graph import values
from sparq.deployment.packing import Packed, pack, stacked
from sparq.errors import UserError
from sparq.quantization.blocks import architecture
from sparq.quantization.simulate import METHOD, SimulatedLinear

DECODERS = ("llama", "mistral", "opt", "qwen2")
_INTEGER_PRODUCTS = 8  # bits; no processor here multiplies narrower activations

# Buffers of a simulated linear by which its input is transformed as it comes, and what each is.
_ONLINE = {"input_signs": "a rotation", "input_scale": "a scale", "input_shift": "a shift", "input_left": "a matrix"}


@dataclasses.dataclass(frozen=True)
class Linear:
    """One product of a graph.

    Attributes:
        weight: float32 [out, in], or packed.
        bias: float32 [out] or None.
    """

    weight: np.ndarray | Packed
    bias: np.ndarray | None


def require_merged(model: PreTrainedModel) -> None:
    """Refuse a model with adapters.

    Raises:
        UserError: it has some.
    """
    if hasattr(model, "peft_config"):
        raise UserError("deployment: the model carries adapters; merge them before it is deployed")


def require_deployable(model: PreTrainedModel) -> AttentionSettings:
    """Say which attention a model has, if a graph can compute what the model does.

    Raises:
        UserError: naming what cannot be deployed: adapters that are not merged, an architecture or attention that has
            no graph, a quantisation that needs more than its weights.
    """
    config: Any = model.config
    require_merged(model)
    if config.model_type not in DECODERS:
        raise UserError(f"deployment: model_type {config.model_type!r} has no graph ({', '.join(DECODERS)} have)")
    architecture(model)  # refuses a deployed model
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise UserError(f"deployment: sliding_window {window} has no graph (only attention to all that came before)")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        raise UserError(f"deployment: rope_type {rope!r} has no graph (its frequencies depend on the length)")
    settings = require_installed(model)
    if settings.sink == "l1":
        raise UserError("deployment: the l1 sink has no graph")
    _require_weights_alone(model)
    return settings


def _require_weights_alone(model: PreTrainedModel) -> None:
    """Refuse a simulated quantisation that does something to activations which a deployed model would not do."""
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is None:
        return
    if quantization.quant_method != METHOD:
        raise UserError(
            f"deployment: the model is quantised by {quantization.quant_method}; deploy it as it was before"
        )
    bits = quantization.settings.activation_bits
    if bits < _INTEGER_PRODUCTS:
        raise UserError(
            f"deployment: activation_bits {bits} can only be simulated; quantise with activation_bits 8 or 16"
        )
    for name, module in model.named_modules():
        if isinstance(module, SimulatedLinear):
            for what, transform in _ONLINE.items():
                if getattr(module, what) is not None:
                    raise UserError(
                        f"deployment: {quantization.method} transforms the input of {name} as it comes "
                        f"({transform}), which a deployed model does not; methods whose transform is folded into "
                        "the weights can be deployed"
                    )


class Reader:
    """Reads linears in the width that was asked for."""

    def __init__(self, model: PreTrainedModel, config: DeploymentConfig) -> None:
        self._config = config
        quantization = getattr(model.config, "quantization_config", None)
        self._simulated = quantization.settings if quantization is not None else None

    def linear(self, modules: dict[str, Any]) -> Linear:
        """Read linears of the same input as one, outputs under each other.

        Args:
            modules: the linears, by their names.
        """
        weights = [self._weight(module, name) for name, module in modules.items()]
        biases = [getattr(module, "bias", None) for module in modules.values()]
        bias = None
        if any(one is not None for one in biases):
            bias = np.concatenate(
                [
                    np.zeros(len(module.weight), np.float32) if one is None else values(one)
                    for one, module in zip(biases, modules.values(), strict=True)
                ]
            )
        if self._config.packed:
            return Linear(stacked([one for one in weights if isinstance(one, Packed)]), bias)
        floats = [one for one in weights if isinstance(one, np.ndarray)]
        return Linear(floats[0] if len(floats) == 1 else np.concatenate(floats), bias)

    def table(self, weight: Tensor, name: str) -> np.ndarray | Packed:
        """Read embeddings, which simulated quantisation leaves in full precision."""
        return pack(weight, self._config.bits, name) if self._config.packed else values(weight)

    def output(self, weight: Tensor) -> np.ndarray | Packed:
        """Read the output layer, the same."""
        return pack(weight, self._config.output_bits, "the output layer") if self._config.packed else values(weight)

    def _weight(self, module: Any, name: str) -> np.ndarray | Packed:
        if type(module) not in {nn.Linear, SimulatedLinear}:  # exact types: those of other libraries are subclasses
            raise UserError(
                f"deployment: {name} is a {type(module).__name__}; merge adapters, deploy in full precision"
            )
        weight = module.weight
        if not self._config.packed:
            return values(weight)
        grid = None
        if self._simulated is not None and isinstance(module, SimulatedLinear):
            grid = self._simulated.weight_quantizer(weight.shape[1])
        return pack(weight, self._config.bits, name, grid)
