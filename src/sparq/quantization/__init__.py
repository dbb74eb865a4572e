"""Post-training quantisation of language models.

`quantize` is the door: it changes a model in place into one that computes as if on low-bit grids.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.quantization.blocks import blocks
from sparq.quantization.calibration import Batch, input_ranges
from sparq.quantization.config import QuantizationConfig
from sparq.quantization.quantizer import Quantizer
from sparq.quantization.simulate import mark, replace_linears, round_weights
from sparq.quantization.smoothquant import smooth

__all__ = ["QuantizationConfig", "Quantizer", "quantize"]


def quantize(model: PreTrainedModel, config: QuantizationConfig, calibration: Iterable[Batch] = ()) -> PreTrainedModel:
    """Quantise a language model in place, simulated (`sparq.quantization.simulate` says what is on a grid).

    Args:
        model: a causal language model of the OPT, Llama, Mistral, Qwen, GPT-2 or GPT-NeoX kind, adapters merged.
        config: method and widths.
        calibration: batches of "input_ids" and "attention_mask", both [batch, length]; "round" needs none.

    Returns:
        The same model. Saved with ``save_pretrained``, it comes back by ``from_pretrained``.

    Raises:
        UserError: the architecture is unknown, the model is quantised already or carries adapters, or there is
            nothing to calibrate with. The model is then as it was.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(f"{type(model).__name__}: is quantised already")
    ranges = {}
    if config.method == "smoothquant":
        first = [siblings.linears[0] for block in blocks(model) for siblings in block.smoothed]
        ranges = input_ranges(model, first, calibration, config.calibration_sequences)
    found = replace_linears(model, config)
    if ranges:
        smooth(model, found, ranges, config.alpha)
    round_weights(model, found, config.weight_bits)
    mark(model, config)
    return model
