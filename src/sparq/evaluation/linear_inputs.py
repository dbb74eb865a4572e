"""Outliers of what the quantised linears read, which is where a quantisation method acts.

The outputs that ``outliers.py`` measures, the residual stream above all, stay in full precision. What has to fit on a
low-bit grid is the input of each linear, after what SmoothQuant divides it by, a rotation turns it into, or OmniQuant
and AffineQuant learnt for it; and it is that which is measured here, before it is rounded.

An infinity norm is not free of scale: dividing an input by 10 and multiplying the weights by 10 makes it smaller and
nothing easier. Kurtosis and crest factor are. A grid of one scale a token has to reach up to the token's largest value,
so the crest factor is what decides how many of its levels are left for the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparq.attention.install import base_model
from sparq.errors import UserError
from sparq.evaluation.outliers import sequence_statistics
from sparq.quantization.blocks import architecture
from sparq.quantization.calibration import Batch, Watched
from sparq.quantization.simulate import SimulatedLinear

INPUTS = ("attention", "attention output", "MLP", "MLP output")
"""Which linears of a block read an input: q, k and v; the one after the attention; the MLP's first; its last."""


@dataclasses.dataclass(frozen=True)
class InputReport:
    """Outliers of the inputs of the linears, by linear; each the mean over the sequences.

    Attributes:
        maximum_infinity_norm: the largest of ``infinity_norms``.
        average_kurtosis: the mean of ``kurtoses``.
        average_crest_factor: the mean of ``crest_factors``.
        infinity_norms: max|x|.
        kurtoses: mean((x − μ)⁴) / σ⁴; 3 for a normal distribution.
        crest_factors: max|x| over the root mean square, of each token, then the mean over the tokens of a sequence.
        sequences: how many were measured.
    """

    maximum_infinity_norm: float
    average_kurtosis: float
    average_crest_factor: float
    infinity_norms: Mapping[str, float]
    kurtoses: Mapping[str, float]
    crest_factors: Mapping[str, float]
    sequences: int


def reading_linears(model: PreTrainedModel) -> list[str]:
    """Names of the linears whose inputs count, one for each input: ``INPUTS`` of each block, in this order.

    Raises:
        UserError: the architecture has no block table.
    """
    row = architecture(model)
    layers: Any = model.get_submodule(row.layers)
    readers = (row.states[0], row.attention_output, row.mlp_inputs[0], row.mlp_output)
    return [f"{row.layers}.{index}.{reader}" for index in range(len(layers)) for reader in readers]


def crest_factors(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each sequence of max|x| / √mean(x²), in float64; a token of zeros counts as 1.

    Args:
        x: [batch, length, channels] or [batch · length, channels].
        mask: [batch, length], true on real tokens.

    Returns:
        [batch].
    """
    x = x.reshape(*mask.shape, -1).double().masked_fill(~mask[..., None], 0.0)
    root = x.square().mean(-1).sqrt()
    crest = torch.where(root > 0, x.abs().amax(-1) / root, torch.ones_like(root))
    return (crest * mask).sum(-1) / mask.sum(-1)


def linear_inputs(model: PreTrainedModel, batches: Iterable[Batch]) -> InputReport:
    """Measure what the linears of a model read, be it in full precision or quantised.

    Args:
        model: a causal language model; it runs in evaluation mode.
        batches: "input_ids" and "attention_mask", both [batch, length].

    Raises:
        UserError: there is not one sequence, or the architecture has no block table.
    """
    model = base_model(model)
    names = reading_linears(model)
    found = {name: torch.zeros(3, dtype=torch.float64) for name in names}
    watched = Watched(model)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = module.transformed(inputs[0]) if isinstance(module, SimulatedLinear) else inputs[0]
            of_sequences = (*sequence_statistics(x, watched.mask), crest_factors(x, watched.mask))
            found[name] += torch.stack(of_sequences).sum(1).cpu()

        return model.get_submodule(name).register_forward_pre_hook(hook)

    sequences = watched.run(map(watch, names), batches)
    if not sequences:
        raise UserError("linear inputs: there is not one sequence")
    norms, kurtoses, crests = ({name: float(total[i]) / sequences for name, total in found.items()} for i in range(3))
    return InputReport(
        maximum_infinity_norm=max(norms.values()),
        average_kurtosis=sum(kurtoses.values()) / len(names),
        average_crest_factor=sum(crests.values()) / len(names),
        infinity_norms=norms,
        kurtoses=kurtoses,
        crest_factors=crests,
        sequences=sequences,
    )
