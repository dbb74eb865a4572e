"""A model block by block: each is run on what the blocks before it give, whatever has become of them by then.

Methods that quantise a block with its inputs in view need this. The work grows with the number of blocks, where running
the whole model for every block would make it grow with the square of that.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparq.quantization.blocks import architecture
from sparq.quantization.calibration import evaluating


@dataclasses.dataclass
class Passage:
    """One batch on its way through the blocks.

    Attributes:
        hidden: the residual stream [batch, length, hidden] before the next block.
        real: [batch · length], true on real tokens.
        calls: for each block what it is called with besides: mask, positions, in the model's own way.
    """

    hidden: Tensor
    real: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def output(self, layer: Any, index: int) -> Tensor:
        """What a block makes of the residual stream."""
        arguments, keywords = self.calls[index]
        output = layer(self.hidden, *arguments, **keywords)
        return output[0] if isinstance(output, tuple) else output


def passages(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> list[Passage]:
    """Take batches to just before the first block.

    Args:
        model: a causal language model; it runs in evaluation mode.
        batches: inputs of forward passes (`calibration.first_sequences`).
    """
    found: list[Passage] = []
    layers: Any = model.get_submodule(architecture(model).layers)
    inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        inputs.append((arguments, keywords))

    handles = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        with evaluating(model):
            for batch in batches:
                inputs.clear()
                model(**batch, use_cache=False)
                hidden = inputs[0][0][0]
                calls = [(arguments[1:], keywords) for arguments, keywords in inputs]
                found.append(Passage(hidden, batch["attention_mask"].flatten().bool(), calls))
    finally:
        for handle in handles:
            handle.remove()
    return found


class _SeenError(Exception):
    """Ends the run of a block where what is behind does not matter."""


@torch.no_grad()
def input_products(layer: Any, index: int, linear: Any, data: Iterable[Passage]) -> Tensor:
    """Σ xᵀx over the real tokens, x being what meets the weight of one linear of a block, quantised.

    Args:
        layer: the block.
        index: its place in the model.
        linear: a `SimulatedLinear` inside it.
        data: what the block is run on.

    Returns:
        [in, in], float64.
    """
    total = torch.zeros(linear.matrix.shape[1], linear.matrix.shape[1], dtype=torch.float64)
    real = torch.empty(0, dtype=torch.bool)

    def watch(_module: Any, inputs: tuple[Tensor, ...]) -> None:
        # OPT gives its MLP [batch · length, channels], everything else is [batch, length, channels].
        x = linear.factor(inputs[0]).flatten(0, -2)[real]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        total.add_((x.T @ x).double().cpu())
        raise _SeenError

    handle = linear.register_forward_pre_hook(watch)
    try:
        for passage in data:
            real = passage.real
            with contextlib.suppress(_SeenError):
                passage.output(layer, index)
    finally:
        handle.remove()
    return total
