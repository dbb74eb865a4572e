"""Post-training quantisation of language models.

`quantize` is the door: it changes a model in place into one that computes as if on low-bit grids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.quantization.blocks import Block, blocks
from sparq.quantization.calibration import Batch, first_sequences, input_ranges
from sparq.quantization.config import QuantizationConfig
from sparq.quantization.gptq import round_by_gptq
from sparq.quantization.quantizer import Quantizer
from sparq.quantization.rotation import rotate_mlp_outputs, rotate_model
from sparq.quantization.simulate import mark, replace_linears, round_weights
from sparq.quantization.smoothquant import smooth

__all__ = ["QuantizationConfig", "Quantizer", "quantize"]

Batches = Iterable[Mapping[str, Tensor]]


def quantize(model: PreTrainedModel, config: QuantizationConfig, calibration: Iterable[Batch] = ()) -> PreTrainedModel:
    """Quantise a language model in place, simulated (`sparq.quantization.simulate` says what is on a grid).

    Args:
        model: a causal language model of the OPT, Llama, Mistral, Qwen, GPT-2 or GPT-NeoX kind, adapters merged.
        config: method and widths.
        calibration: batches of "input_ids" and "attention_mask", both [batch, length]; SmoothQuant and GPTQ need them.

    Returns:
        The same model. Saved with ``save_pretrained``, it comes back by ``from_pretrained``.

    Raises:
        UserError: the architecture is unknown or cannot take the method, the model is quantised already or carries
            adapters, or there is nothing to calibrate with. The model is then as it was.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(f"{type(model).__name__}: is quantised already")
    batches: Batches = first_sequences(model, calibration, config.calibration_sequences)
    if config.rounding == "gptq":
        batches = list(batches)
        # What is not finite shows here, before anything is changed.
        input_ranges(model, [name for block in blocks(model) for name in block.linears], batches)
    found = _METHODS[config.method](model, config, batches)
    if config.rounding == "gptq":
        round_by_gptq(model, found, config.weight_bits, batches)
    else:
        round_weights(model, found, config.weight_bits)
    mark(model, config)
    return model


def _round(model: PreTrainedModel, config: QuantizationConfig, _batches: Batches) -> list[Block]:
    return replace_linears(model, config)


def _smoothquant(model: PreTrainedModel, config: QuantizationConfig, batches: Batches) -> list[Block]:
    first = [siblings.linears[0] for block in blocks(model) for siblings in block.smoothed]
    ranges = input_ranges(model, first, batches)
    found = replace_linears(model, config)
    smooth(model, found, ranges, config.alpha)
    return found


def _rotation(model: PreTrainedModel, config: QuantizationConfig, _batches: Batches) -> list[Block]:
    generator = rotate_model(model, config.seed)
    found = replace_linears(model, config)
    rotate_mlp_outputs(model, found, generator)
    return found


# What is done to the model before its weights are rounded: linears become simulated ones, the function stays the same.
_METHODS: dict[str, Callable[[PreTrainedModel, QuantizationConfig, Batches], list[Block]]] = {
    "round": _round,
    "smoothquant": _smoothquant,
    "rotation": _rotation,
}
