"""Post-training quantisation of language models.

`quantize` is the door: it changes a model in place into one that computes as if on low-bit grids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from sparq.attention.install import own_configuration, require_installed
from sparq.errors import UserError
from sparq.quantization.affinequant import AffineQuant
from sparq.quantization.blocks import Block, blocks
from sparq.quantization.calibration import Batch, calibration_steps, input_ranges
from sparq.quantization.config import QuantizationConfig
from sparq.quantization.flatquant import FlatQuant
from sparq.quantization.gptq import round_by_gptq
from sparq.quantization.omniquant import OmniQuant
from sparq.quantization.quantizer import Quantizer
from sparq.quantization.reconstruction import BlockReport, Report, reconstruct
from sparq.quantization.rotation import rotate_mlp_outputs, rotate_model
from sparq.quantization.simulate import mark, replace_linears, round_weights
from sparq.quantization.smoothquant import smooth

__all__ = ["BlockReport", "QuantizationConfig", "Quantizer", "quantize"]

Method = Callable[[PreTrainedModel, QuantizationConfig, Iterable[Batch], Path | None, Report], None]
Preparation = Callable[[PreTrainedModel, QuantizationConfig, Iterable[Batch]], list[Block]]
Rounding = Callable[[PreTrainedModel, list[Block], QuantizationConfig, Iterable[Batch]], None]


def quantize(
    model: PreTrainedModel,
    config: QuantizationConfig,
    calibration: Iterable[Batch] = (),
    *,
    folder: Path | None = None,
    report: Report = lambda _: None,
) -> PreTrainedModel:
    """Quantise a language model in place, simulated (`sparq.quantization.simulate` says what is on a grid).

    Args:
        model: a causal language model of the OPT, Llama, Mistral, Qwen, GPT-2 or GPT-NeoX kind, adapters merged.
        config: method, rounding and widths.
        calibration: batches of "input_ids" and "attention_mask", both [batch, length]; "round" and "rotation" need
            none, unless weights are rounded by GPTQ.
        folder: for the methods that learn: where finished blocks are kept. The same call goes on after them.
        report: for the methods that learn: told of every finished block.

    Returns:
        The same model. Saved with ``save_pretrained``, it comes back by ``sparq.attention.load_pretrained``; without a
        sink, by ``from_pretrained`` too, once this package is imported.

    Raises:
        UserError: the architecture is unknown or cannot take the method, the model is quantised already or carries
            adapters, or computes with another attention than it records, or there is nothing to calibrate with. The
            model is then as it was. Only where activations overflow first when some weights are rounded (GPTQ, in half
            precision) is it left halfway.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(f"{type(model).__name__}: is quantised already")
    require_installed(model)
    own_configuration(model)
    _METHODS[config.method](model, config, calibration, folder, report)
    mark(model, config)
    return model


def _prepared(
    prepare: Preparation, model: PreTrainedModel, config: QuantizationConfig, calibration: Iterable[Batch], *_: object
) -> None:
    """Prepare a model, whose function stays the same, and round its weights."""
    batches: Iterable[Batch] = calibration_steps(model, calibration, config.calibration_sequences)
    if config.rounding == "gptq":
        batches = list(batches)
        # What is not finite shows here, before anything is changed.
        input_ranges(model, [name for block in blocks(model) for name in block.linears], batches)
    _ROUNDINGS[config.rounding](model, prepare(model, config, batches), config, batches)


def _plain(model: PreTrainedModel, config: QuantizationConfig, _batches: Iterable[Batch]) -> list[Block]:
    return replace_linears(model, config)


def _smoothquant(model: PreTrainedModel, config: QuantizationConfig, batches: Iterable[Batch]) -> list[Block]:
    first = [siblings.linears[0] for block in blocks(model) for siblings in block.smoothed]
    ranges = input_ranges(model, first, batches)
    found = replace_linears(model, config)
    smooth(model, found, ranges, config.alpha)
    return found


def _rotation(model: PreTrainedModel, config: QuantizationConfig, _batches: Iterable[Batch]) -> list[Block]:
    generator = rotate_model(model, config.seed)
    found = replace_linears(model, config)
    rotate_mlp_outputs(model, found, generator)
    return found


def _learnt(
    kind: type[OmniQuant],
    model: PreTrainedModel,
    config: QuantizationConfig,
    calibration: Iterable[Batch],
    folder: Path | None,
    report: Report,
) -> None:
    reconstruct(model, config, kind, calibration, folder, report)


_METHODS: dict[str, Method] = {
    "smoothquant": partial(_prepared, _smoothquant),
    "rotation": partial(_prepared, _rotation),
    "omniquant": partial(_learnt, OmniQuant),
    "affinequant": partial(_learnt, AffineQuant),
    "flatquant": partial(_learnt, FlatQuant),
    "round": partial(_prepared, _plain),
}
_ROUNDINGS: dict[str, Rounding] = {
    "nearest": lambda model, found, config, _batches: round_weights(model, found, config),
    "gptq": round_by_gptq,
}
