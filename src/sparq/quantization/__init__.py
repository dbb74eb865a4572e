"""Post-training quantisation of language models.

`quantize` is the door: it changes a model in place into one that computes as if on low-bit grids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.quantization.affinequant import AffineQuant
from sparq.quantization.blocks import blocks
from sparq.quantization.calibration import Batch, input_ranges
from sparq.quantization.config import QuantizationConfig
from sparq.quantization.omniquant import OmniQuant
from sparq.quantization.quantizer import Quantizer
from sparq.quantization.reconstruction import BlockReport, Report, reconstruct
from sparq.quantization.simulate import mark, replace_linears, round_weights
from sparq.quantization.smoothquant import smooth

__all__ = ["BlockReport", "QuantizationConfig", "Quantizer", "quantize"]

Method = Callable[[PreTrainedModel, QuantizationConfig, Iterable[Batch], Path | None, Report], None]


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
        config: method and widths.
        calibration: batches of "input_ids" and "attention_mask", both [batch, length]; "round" needs none.
        folder: for the methods that learn: where finished blocks are kept. The same call goes on after them.
        report: for the methods that learn: told of every finished block.

    Returns:
        The same model. Saved with ``save_pretrained``, it comes back by ``from_pretrained``.

    Raises:
        UserError: the architecture is unknown, the model is quantised already or carries adapters, or there is
            nothing to calibrate with. The model is then as it was.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(f"{type(model).__name__}: is quantised already")
    _METHODS[config.method](model, config, calibration, folder, report)
    mark(model, config)
    return model


def _round(model: PreTrainedModel, config: QuantizationConfig, *_: object) -> None:
    round_weights(model, replace_linears(model, config), config)


def _smoothquant(model: PreTrainedModel, config: QuantizationConfig, calibration: Iterable[Batch], *_: object) -> None:
    first = [siblings.linears[0] for block in blocks(model) for siblings in block.smoothed]
    ranges = input_ranges(model, first, calibration, config.calibration_sequences)
    found = replace_linears(model, config)
    smooth(model, found, ranges, config.alpha)
    round_weights(model, found, config)


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
    "smoothquant": _smoothquant,
    "omniquant": partial(_learnt, OmniQuant),
    "affinequant": partial(_learnt, AffineQuant),
    "round": _round,
}
