"""GPTQ (Frantar et al., 2023): round a weight so that its product with real inputs stays, not the weight itself.

With Q the rounded W [out, in] and X the inputs [tokens, in], the error is ‖X(W − Q)ᵀ‖² = tr((W − Q)·H·(W − Q)ᵀ),
H = XᵀX. Columns are rounded one after another; the error of each is made up for, as well as it can be, in the columns
that are not rounded yet. With U upper triangular and UᵀU = H⁻¹ that is W[:, j:] −= (w_j − q_j) / U_jj · U[j, j:].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.quantization.blocks import Block
from sparq.quantization.blockwise import Passage, input_products, passages
from sparq.quantization.calibration import Batch, evaluating
from sparq.quantization.config import QuantizationConfig
from sparq.quantization.quantizer import Extremes, Quantizer, fake_quantize

DAMPENING = 0.01  # share of the mean of H's diagonal that is added to it (Frantar et al., 2023, section 3.3)
COLUMNS = 128  # how many columns are rounded before the rest hears of it: the same result in fewer passes over it


def gptq(weight: Tensor, products: Tensor, quantizer: Quantizer, extremes: Extremes | None = None) -> Tensor:
    """Put a weight on its grid by GPTQ; the grid is that of plain rounding, clipped or not.

    Nothing guarantees that a row ends nearer than by plain rounding; one that does not is rounded plainly. Columns go
    in the order in which they lie: to take those of the largest inputs first was no better on a shipped SpeechLM.

    Args:
        weight: W [out, in].
        products: XᵀX [in, in]. A channel without input has no part in any error, and is rounded to nearest.
        quantizer: of a "channel", or of a "group" of inputs, whose size divides them.
        extremes: gives the range of the grid, as for the quantiser; None for all that is in the weight.

    Returns:
        Q [out, in], float64.
    """
    h = products.to(weight.device, torch.float64)
    w = weight.double()
    scale, zero_point = _grid(w, quantizer, extremes or quantizer.extremes)
    upper = _inverse_factor(h)
    left = w.clone()
    made = torch.empty_like(w)
    for start in range(0, left.shape[1], COLUMNS):
        stop = min(start + COLUMNS, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for j in range(start, stop):
            q = fake_quantize(left[:, j], scale[:, j], zero_point[:, j], *quantizer.levels)
            error = (left[:, j] - q) / upper[j, j]
            left[:, j + 1 : stop] -= torch.outer(error, upper[j, j + 1 : stop])
            made[:, j], errors[:, j - start] = q, error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    plain = fake_quantize(w, scale, zero_point, *quantizer.levels)
    return torch.where(_errors(w - made, h) < _errors(w - plain, h), made, plain)


def _grid(w: Tensor, quantizer: Quantizer, extremes: Extremes) -> tuple[Tensor, Tensor]:
    """Step and zero point for each value of a weight [out, in]."""
    values = quantizer.grouped(w)
    scale, zero_point = quantizer.grid(*extremes(values))
    zero_point = torch.as_tensor(zero_point, dtype=w.dtype, device=w.device)
    return scale.expand_as(values).reshape_as(w), zero_point.expand_as(values).reshape_as(w)


def _errors(difference: Tensor, h: Tensor) -> Tensor:
    """Each row's share of tr(D·H·Dᵀ) [out, 1]."""
    return ((difference @ h) * difference).sum(1, keepdim=True)


def _inverse_factor(h: Tensor) -> Tensor:
    """U upper triangular with UᵀU = (H + damping)⁻¹."""
    mean = h.diagonal().mean()
    damping = DAMPENING * mean if mean > 0 else torch.ones_like(mean)
    damped = h + damping * torch.eye(len(h), dtype=h.dtype, device=h.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


@torch.no_grad()
def round_by_gptq(
    model: PreTrainedModel, found: list[Block], config: QuantizationConfig, batches: Iterable[Batch]
) -> None:
    """Put the weights of the blocks on their grids, in the order in which data flows through them.

    Each linear is calibrated on what it will really be given: inputs on their low-bit grids, made by linears before it
    whose weights are rounded already.

    Args:
        model: one whose linears are `SimulatedLinear`; changed in place.
        found: its blocks.
        config: width, groups and clipping of the weights.
        batches: inputs of forward passes (`calibration.calibration_steps`).

    Raises:
        UserError: an input is not finite.
    """
    clipping = config.tail_clipping()
    with evaluating(model):
        data = passages(model, found, batches)
        for block in found:
            layer = model.get_submodule(block.name)
            round_block(model, block, config, data, dict.fromkeys(block.linears, clipping))
            for passage in data:
                passage.advance(layer, block)


def round_block(
    model: PreTrainedModel,
    block: Block,
    config: QuantizationConfig,
    data: Sequence[Passage],
    ranges: Mapping[str, Extremes | None],
) -> None:
    """Put the weights of one block on their grids, in the order in which data flows through them.

    Args:
        model: in evaluation mode and without gradients; the linears of the block are `SimulatedLinear`.
        block: which.
        config: width and groups of the weights.
        data: what the block reads.
        ranges: of the grid of each linear's weight, by its name; None for all that is in the weight.

    Raises:
        UserError: an input is not finite.
    """
    layer = model.get_submodule(block.name)
    for names in block.readers:
        linears: list[Any] = [model.get_submodule(name) for name in names]
        products = input_products(layer, block, linears[0], data)
        if not bool(products.isfinite().all()):
            raise UserError(f"calibration: the input of {names[0]} is not finite")
        quantizer = config.weight_quantizer(len(products))
        assert quantizer is not None  # the configuration refuses GPTQ in full precision
        for name, linear in zip(names, linears, strict=True):
            linear.matrix.copy_(gptq(linear.matrix, products, quantizer, ranges[name]))
