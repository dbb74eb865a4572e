"""SmoothQuant (Xiao et al., 2023): move the outliers of the activations into the weights, where they hurt less.

With X the input of some linears and W their weights, X·Wᵀ = (X/s)·(W·s)ᵀ for any positive scale s per input channel.
SmoothQuant takes s = max|X|^α / max|W|^(1−α), which at α = 0.5 gives both the same range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparq.quantization.blocks import Block, Siblings

SMALLEST = 1e-5


def smoothing_scale(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """Take s = max|X|^α / max|W|^(1−α), each range and s itself at least 1e-5, in float32 or wider.

    Args:
        activation: max|X| of each channel [in].
        weight: max|W| of each channel over all linears that read X [in].
        alpha: share of the difficulty that the weights take.
    """
    dtype = torch.promote_types(activation.dtype, torch.float32)
    x, w = (value.to(dtype).clamp(min=SMALLEST) for value in (activation, weight))
    return (x.pow(alpha) / w.pow(1 - alpha)).clamp(min=SMALLEST)


@torch.no_grad()
def smooth(model: PreTrainedModel, found: list[Block], ranges: Mapping[str, Tensor], alpha: float) -> None:
    """Smooth what reads a norm: q, k and v, and the MLP's inputs; the model's function stays the same.

    Args:
        model: one whose linears are `SimulatedLinear`, weights not yet rounded; changed in place.
        found: its blocks.
        ranges: max|X| by the name of the first linear of each set of siblings (`calibration.input_ranges`).
        alpha: see `smoothing_scale`.
    """
    for block in found:
        for siblings in block.smoothed:
            _smooth_siblings(model, siblings, ranges[siblings.linears[0]], alpha)


def _smooth_siblings(model: PreTrainedModel, siblings: Siblings, activation: Tensor, alpha: float) -> None:
    linears: list[Any] = [model.get_submodule(name) for name in siblings.linears]
    weight = torch.stack([linear.matrix.abs().amax(0) for linear in linears]).amax(0)
    scale = smoothing_scale(activation, weight, alpha)
    for linear in linears:
        linear.matrix.mul_(scale)
        if siblings.norm is None:
            linear.input_scale.copy_(scale)
    if siblings.norm is not None:
        for parameter in siblings.norm.parameters():  # weight, and bias if there is one
            parameter.div_(scale)
