"""Activation outliers: maximum infinity norm and average kurtosis (paper, appendix F and Figure 3).

Measured are the outputs of 5N + 1 modules of a model of N blocks: of each block the block itself, its two norms, the
linear after the attention and the linear that leaves the MLP; and the final norm (a post-norm OPT has none: 5N). The
modules are those of Bondarenko et al. (2023) for OPT and their counterparts elsewhere.

The unit is the sentence, as in the paper: all real tokens and all channels of one sequence are one sample, for every
module; padding is left out. OPT flattens its batch around the MLP, which makes the token the unit there in the
reference code (``fc2``, and ``final_layer_norm`` of a pre-norm block); here these are sentences like the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparq.attention.install import base_model
from sparq.errors import UserError
from sparq.quantization.blocks import architecture
from sparq.quantization.calibration import Batch, Watched


@dataclasses.dataclass(frozen=True)
class OutlierReport:
    """Outliers of a model on a set of sequences.

    Attributes:
        maximum_infinity_norm: the largest of ``infinity_norms``.
        average_kurtosis: the mean of ``kurtoses``.
        infinity_norms: by module, the mean over the sequences of max|x|.
        kurtoses: by module, the mean over the sequences of mean((x − μ)⁴) / σ⁴; 3 for a normal distribution.
        sequences: how many were measured.
    """

    maximum_infinity_norm: float
    average_kurtosis: float
    infinity_norms: Mapping[str, float]
    kurtoses: Mapping[str, float]
    sequences: int


PARTS = ("residual stream", "attention norm", "attention output", "MLP norm", "MLP output")
"""What is measured of a block, as figures call it; ``measured_modules`` has them in this order."""


def measured_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules whose outputs count, from the model down: ``PARTS`` of each block, then the final norm.

    Raises:
        UserError: the architecture has no block table.
    """
    row = architecture(model)
    layers: Any = model.get_submodule(row.layers)
    names = []
    for index in range(len(layers)):
        block = f"{row.layers}.{index}"
        parts = (row.attention_norm, row.attention_output, row.mlp_norm, row.mlp_output)
        names += [block, *(f"{block}.{part}" for part in parts)]
    parent, _, norm = row.final_norm.rpartition(".")
    return [*names, row.final_norm] if getattr(model.get_submodule(parent), norm, None) is not None else names


def by_layer(values: Mapping[str, float], parts: Sequence[str] = PARTS) -> list[list[float]]:
    """Sort values by module, such as ``OutlierReport.kurtoses``, into [layers][parts]; a final norm is left out."""
    listed = list(values.values())
    whole = len(listed) // len(parts) * len(parts)
    return [listed[first : first + len(parts)] for first in range(0, whole, len(parts))]


def sequence_statistics(output: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Infinity norm and kurtosis of each sequence, in float64.

    Args:
        output: [batch, length, channels] or [batch · length, channels].
        mask: [batch, length], true on real tokens.

    Returns:
        max|x| [batch] and kurtosis [batch]; the kurtosis of a constant is taken as 0.
    """
    real = mask.bool()[..., None]
    x = output.reshape(*mask.shape, -1).double().masked_fill(~real, 0.0)
    count = real.sum((1, 2)) * x.shape[-1]
    mean = x.sum((1, 2)) / count
    squared = (x - mean[:, None, None]).square().masked_fill(~real, 0.0)
    variance, fourth = squared.sum((1, 2)) / count, squared.square().sum((1, 2)) / count
    kurtosis = torch.where(variance > 0, fourth / variance.square(), torch.zeros_like(fourth))
    return x.abs().amax((1, 2)), kurtosis


def outliers(model: PreTrainedModel, batches: Iterable[Batch]) -> OutlierReport:
    """Measure the outliers of a model on text, on speech, or on both, whichever the batches hold.

    Args:
        model: a causal language model, adapters around it or not; it runs in evaluation mode.
        batches: "input_ids" and "attention_mask", both [batch, length]
            (`sparq.language.likelihood.padded_batches` makes them).

    Raises:
        UserError: there is not one sequence, or the architecture has no block table.
    """
    model = base_model(model)
    names = measured_modules(model)
    norms, kurtoses = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    watched = Watched(model)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            norm, kurtosis = sequence_statistics(output[0] if isinstance(output, tuple) else output, watched.mask)
            norms[name] += float(norm.sum())
            kurtoses[name] += float(kurtosis.sum())

        return model.get_submodule(name).register_forward_hook(hook)

    sequences = watched.run(map(watch, names), batches)
    if not sequences:
        raise UserError("outliers: there is not one sequence")
    norms = {name: total / sequences for name, total in norms.items()}
    kurtoses = {name: total / sequences for name, total in kurtoses.items()}
    return OutlierReport(max(norms.values()), sum(kurtoses.values()) / len(names), norms, kurtoses, sequences)
