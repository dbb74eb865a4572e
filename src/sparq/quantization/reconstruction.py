"""Block-wise reconstruction: each block learns to give, quantised, what it gave in full precision.

The target of a block is its full-precision output on full-precision inputs; the student is the quantised block on what
the quantised blocks before it give, so that it makes up for their errors too. The loss is the mean squared error over
real tokens, minimised by AdamW without weight decay, at a constant rate (OmniQuant, Shao et al., 2023, appendix A1) or
along a cosine (FlatQuant, Sun et al., 2024). What was learnt is folded into the model; its weights are then on their
grids, or GPTQ puts them there.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sparq.errors import UserError
from sparq.quantization.blocks import Block, blocks
from sparq.quantization.blockwise import Passage, passages
from sparq.quantization.calibration import Batch, calibration_steps, evaluating
from sparq.quantization.config import FULL_PRECISION, QuantizationConfig
from sparq.quantization.finished import FinishedBlocks
from sparq.quantization.gptq import round_block
from sparq.quantization.omniquant import OmniQuant
from sparq.quantization.simulate import replace_linears_of
from sparq.quantization.transforms import InputRange

MOMENTUM = 0.99  # of the running middle of an input's range


@dataclasses.dataclass(frozen=True)
class BlockReport:
    """How the learning of one block went.

    Attributes:
        block: which, from 1.
        blocks: how many there are.
        before: mean squared error of its output with nothing learnt.
        after: the same with what was learnt.
    """

    block: int
    blocks: int
    before: float
    after: float


Report = Callable[[BlockReport], None]


@dataclasses.dataclass
class Step:
    """The sequences of one step of the learning, twice on their way through the blocks.

    Attributes:
        wanted: in full precision.
        given: through the quantised blocks.
    """

    wanted: Passage
    given: Passage

    def error(
        self, layer: nn.Module, block: Block, tensors: Mapping[str, Tensor] | None = None, *, relative: bool = False
    ) -> Tensor:
        """Mean squared error of a block's output over the real tokens; ``wanted`` is behind the block already.

        Args:
            layer: the block's module.
            block: its row of the table.
            tensors: in place of the module's own.
            relative: whether that of each token is divided by the mean square of what is wanted there.
        """
        given, wanted = self.given.output(layer, block, tensors), self.wanted.hidden
        error = (given - wanted)[self.wanted.mask].square()
        if relative:
            size = wanted[self.wanted.mask].square().mean(-1, keepdim=True)
            error = error / size.clamp(min=torch.finfo(size.dtype).tiny)
        return error.mean()


def reconstruct(
    model: PreTrainedModel,
    config: QuantizationConfig,
    method: type[OmniQuant],
    calibration: Iterable[Batch],
    folder: Path | None = None,
    report: Report = lambda _: None,
) -> None:
    """Quantise a model in place, block by block.

    Args:
        model: a causal language model in float32 or float64, not quantised.
        config: widths and how it learns.
        method: what is learnt of a block.
        calibration: see `sparq.quantization.calibration.model_inputs`.
        folder: where finished blocks are kept; those that are there already are not learnt again.
        report: told of every finished block.

    Raises:
        UserError: the model is in half precision, its architecture is unknown, a hidden state is not finite, there is
            nothing to calibrate with, or the folder holds blocks of another learning. The model is then as it was.
    """
    if model.dtype not in {torch.float32, torch.float64}:
        raise UserError(f"dtype: {model.dtype} (expected float32 for {config.method}, which learns)")
    found = blocks(model)
    with evaluating(model):
        batches = calibration_steps(model, calibration, config.calibration_sequences, config.batch_sequences)
        steps = [Step(passage, dataclasses.replace(passage)) for passage in passages(model, found, batches)]
        inputs = [step.given.hidden[step.given.mask] for step in steps]
        finished = None if folder is None else FinishedBlocks(folder, model, config, inputs)
        for index, block in enumerate(found):
            layer = model.get_submodule(block.name)
            ranges = _to_targets(layer, block, model, steps)
            state = block_state(layer, block)
            replace_linears_of(model, block, config)
            done = finished.read(index) if finished else None
            if done is None:
                learnt = method(block, state, ranges, config)
                errors = _learn(layer, block, state, learnt, steps)
                if config.rounding == "gptq":
                    tensors = _inside(layer, block, learnt.transformation.fold(state))
                    _store(layer, tensors)
                    clippings = {name: one.extremes for name, one in learnt.weight_clippings().items()}
                    round_block(model, block, config, [step.given for step in steps], clippings)
                    errors = errors[0], _mean_error(layer, block, steps, relative=method.relative)
                    tensors = {name: _tensor(layer, name) for name in tensors}
                else:
                    tensors = {name: tensor.detach() for name, tensor in _inside(layer, block, learnt(state)).items()}
                if finished:
                    finished.write(index, tensors, errors)
            else:
                tensors, errors = done
            _store(layer, tensors)
            for step in steps:
                step.given.advance(layer, block)
            report(BlockReport(index + 1, len(found), *errors))


def block_state(layer: nn.Module, block: Block) -> dict[str, Tensor]:
    """Give what a transformation works on: linears (weights as [out, in]) and norms it may fold into, by full name.

    Args:
        layer: the block's module.
        block: its row of the table.

    Returns:
        Tensors that share nothing with the module's parameters.
    """
    norms = [siblings.norm_name for siblings in block.smoothed if siblings.norm is not None]
    state = {}
    for name in [*block.linears, *norms]:
        module = layer.get_submodule(name.removeprefix(f"{block.name}."))
        for key, parameter in module.named_parameters(recurse=False):
            turned = key == "weight" and _stored_turned(module)
            state[f"{name}.{key}"] = (parameter.T if turned else parameter).detach().clone()
    return state


def _stored_turned(module: Any) -> bool:
    """Whether a linear has its weight as [in, out]."""
    return isinstance(module, Conv1D) or bool(getattr(module, "transposed", False))


def _inside(layer: nn.Module, block: Block, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name and turn tensors of a block's state as its module has them."""
    inside = {}
    for name, tensor in state.items():
        short = name.removeprefix(f"{block.name}.")
        module, _, key = short.rpartition(".")
        turned = key == "weight" and _stored_turned(layer.get_submodule(module))
        inside[short] = tensor.T if turned else tensor
    return inside


def _tensor(layer: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a block's module."""
    module, _, key = name.rpartition(".")
    tensor: Tensor = getattr(layer.get_submodule(module), key)
    return tensor.detach()


def _store(layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        _tensor(layer, name).copy_(tensor)


def _mean_error(
    layer: nn.Module,
    block: Block,
    steps: Sequence[Step],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    relative: bool,
) -> float:
    """`Step.error` over the tokens of all steps."""
    tokens = [int(step.wanted.mask.sum()) for step in steps]
    errors = [float(step.error(layer, block, tensors, relative=relative)) for step in steps]
    return sum(map(operator.mul, errors, tokens)) / sum(tokens)


def _to_targets(layer: nn.Module, block: Block, model: PreTrainedModel, steps: list[Step]) -> dict[str, InputRange]:
    """Move the full-precision states through a block that is not quantised yet; give the ranges of what it read."""
    ranges: dict[str, InputRange] = {}
    mask = torch.empty(0, dtype=torch.bool)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)[mask]
            smallest, largest = x.amin(0), x.amax(0)
            middle = (smallest + largest) / 2
            if name in ranges:
                before = ranges[name]
                middle = MOMENTUM * before.middle + (1 - MOMENTUM) * middle
                smallest, largest = torch.minimum(before.smallest, smallest), torch.maximum(before.largest, largest)
            ranges[name] = InputRange(middle, smallest, largest)

        return model.get_submodule(name).register_forward_pre_hook(hook)

    handles = [watch(names[0]) for names in block.readers]
    try:
        for step in steps:
            mask = step.wanted.mask.flatten()
            step.wanted.advance(layer, block)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def _learn(
    layer: nn.Module, block: Block, state: Mapping[str, Tensor], learnt: OmniQuant, steps: list[Step]
) -> tuple[float, float]:
    """Learn one block and leave it at its best epoch, the beginning included; give the errors before and after."""
    config = learnt.config
    fixed = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def tensors() -> dict[str, Tensor]:
        return fixed | _inside(layer, block, learnt(state))

    def error() -> float:
        return _mean_error(layer, block, steps, tensors(), relative=learnt.relative)

    before = error()
    if config.weight_bits == config.activation_bits == FULL_PRECISION:
        return before, before
    best, after = copy.deepcopy(learnt.state_dict()), before
    optimizer = torch.optim.AdamW(learnt.parameter_groups(), weight_decay=0.0)
    count = config.epochs * len(steps)
    schedule = LambdaLR(optimizer, lambda at: (1 + math.cos(math.pi * at / count)) / 2 if learnt.decays else 1.0)
    for epoch in range(config.epochs):
        learnt.begin_epoch(epoch)
        with torch.enable_grad():
            for step in steps:
                optimizer.zero_grad()
                step.error(layer, block, tensors(), relative=learnt.relative).backward()
                optimizer.step()
                schedule.step()
        reached = error()
        if reached < after:
            best, after = copy.deepcopy(learnt.state_dict()), reached
        if not math.isfinite(reached):
            break
    learnt.load_state_dict(best)
    return before, after
