"""A model block by block: each is run on what the blocks before it give, whatever has become of them by then.

Methods that quantise a block with its inputs in view need this: GPTQ, and those that learn. The work grows with the
number of blocks, where running the whole model for every block would make it grow with the square of that.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.quantization.blocks import Block
from sparq.quantization.calibration import Batch


@dataclasses.dataclass
class Passage:
    """One batch on its way through the blocks.

    Attributes:
        hidden: the residual stream [batch, length, hidden] before the next block.
        mask: which tokens are real [batch, length].
        calls: what each block is called with besides, by its name: mask, positions, in the model's own way.
    """

    hidden: Tensor
    mask: Tensor
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]]

    def output(self, layer: nn.Module, block: Block, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """What a block makes of the residual stream, with other tensors in place of its own if they are given."""
        arguments, keywords = self.calls[block.name]
        inputs = (self.hidden, *arguments)
        if tensors is None:
            output = layer(*inputs, **keywords)
        else:
            output = functional_call(layer, dict(tensors), inputs, keywords)
        return output[0] if isinstance(output, tuple) else output

    def advance(self, layer: nn.Module, block: Block) -> None:
        """Go through a block."""
        self.hidden = self.output(layer, block)


def passages(model: PreTrainedModel, found: Sequence[Block], batches: Iterable[Batch]) -> list[Passage]:
    """Take batches to just before the first block, by running the model as it is.

    Args:
        model: a causal language model, in evaluation mode and without gradients (`calibration.evaluating`).
        found: its blocks.
        batches: inputs of forward passes (`calibration.calibration_steps`).

    Raises:
        UserError: the input of a block is not finite.
    """
    hidden: list[Tensor] = []
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def watch(block: Block) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            state, *rest = inputs
            if not bool(state.isfinite().all()):
                raise UserError(f"calibration: the input of {block.name} is not finite")
            hidden.append(state)
            calls[block.name] = tuple(rest), keywords

        return model.get_submodule(block.name).register_forward_pre_hook(hook, with_kwargs=True)

    made = []
    handles = [watch(block) for block in found]
    try:
        for batch in batches:
            hidden.clear()
            model.base_model(**batch, use_cache=False)
            made.append(Passage(hidden[0], batch["attention_mask"].bool(), dict(calls)))
    finally:
        for handle in handles:
            handle.remove()
    return made


class _SeenError(Exception):
    """Ends the run of a block where what is behind does not matter."""


def input_products(layer: nn.Module, block: Block, linear: Any, data: Iterable[Passage]) -> Tensor:
    """Σ xᵀx over the real tokens, x being what meets the weight of one linear of a block, quantised.

    Args:
        layer: the block's module, in evaluation mode and without gradients.
        block: its row of the table.
        linear: a `SimulatedLinear` inside it.
        data: what the block is run on.

    Returns:
        [in, in], float64.
    """
    total = torch.zeros(linear.matrix.shape[1], linear.matrix.shape[1], dtype=torch.float64)
    real = torch.empty(0, dtype=torch.bool)

    def watch(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # OPT gives its MLP [batch · length, channels], everything else is [batch, length, channels].
        x = linear.factor(inputs[0]).flatten(0, -2)[real]
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        total.add_((x.T @ x).double().cpu())
        raise _SeenError

    handle = linear.register_forward_pre_hook(watch)
    try:
        for passage in data:
            real = passage.mask.flatten()
            with contextlib.suppress(_SeenError):
                passage.output(layer, block)
    finally:
        handle.remove()
    return total
