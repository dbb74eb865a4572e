"""Running a language model over batches to look at what flows through it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from sparq.errors import UserError

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside the block; the modes of before after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def model_inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """What a forward pass needs of a batch, on the model's device.

    Positions are counted from the first real token, so padding on the left and on the right give the same.

    Args:
        model: the language model.
        batch: "input_ids" [batch, length], and "attention_mask" of the same shape (all ones if absent).

    Raises:
        UserError: "input_ids" is missing, the shapes differ, or a sequence has no token.
    """
    if "input_ids" not in batch:
        raise UserError(f"batch: has no input_ids (only {', '.join(batch) or 'nothing'})")
    ids = batch["input_ids"].to(model.device)
    mask = batch["attention_mask"].to(model.device) if "attention_mask" in batch else torch.ones_like(ids)
    if mask.shape != ids.shape:
        raise UserError(f"batch: attention_mask is {tuple(mask.shape)}, input_ids {tuple(ids.shape)}")
    if not bool(mask.any(-1).all()):
        raise UserError("batch: a sequence has no token")
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def calibration_steps(
    model: PreTrainedModel, batches: Iterable[Batch], sequences: int, size: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Go through so many sequences of some batches, without the padding that all of a step begin or end with.

    Args:
        model: the language model that reads them.
        batches: see `model_inputs`.
        sequences: how many sequences to take; batches beyond them are not looked at.
        size: sequences in a step at most; None for those of a batch.

    Yields:
        What `model_inputs` gives.

    Raises:
        UserError: there is not one sequence.
    """
    seen = 0
    for batch in batches:
        inputs = {key: value[: sequences - seen] for key, value in model_inputs(model, batch).items()}
        count = len(inputs["input_ids"])
        together = size or max(1, count)
        for first in range(0, count, together):
            step = {key: value[first : first + together] for key, value in inputs.items()}
            real = step["attention_mask"].any(0).nonzero()
            yield {key: value[:, int(real[0]) : int(real[-1]) + 1] for key, value in step.items()}
        seen += count
        if seen >= sequences:
            break
    if not seen:
        raise UserError("calibration: there is not one sequence")
    if seen < sequences:
        logger.warning("calibration: only %d sequences of the %d asked for", seen, sequences)


class Watched:
    """A model that runs over batches under hooks.

    Attributes:
        mask: of the batch that runs now [batch, length], true on real tokens; hooks read it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.mask = torch.empty(0, 0, dtype=torch.bool)

    def run(self, handles: Iterable[RemovableHandle], batches: Iterable[Batch]) -> int:
        """Run over all batches in evaluation mode, without gradients; the hooks are gone afterwards.

        Args:
            handles: of the hooks.
            batches: see `model_inputs`.

        Returns:
            How many sequences there were.
        """
        held = list(handles)
        sequences = 0
        try:
            with evaluating(self._model):
                for batch in batches:
                    inputs = model_inputs(self._model, batch)
                    self.mask = inputs["attention_mask"].bool()
                    self._model(**inputs, use_cache=False)
                    sequences += len(self.mask)
        finally:
            for handle in held:
                handle.remove()
        return sequences


def input_ranges(model: PreTrainedModel, names: Sequence[str], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Largest magnitude of each input channel of some modules; padding does not count.

    Args:
        model: the language model; it runs in evaluation mode.
        names: modules whose input is watched.
        batches: inputs of forward passes, as `calibration_steps` gives them.

    Returns:
        For each name a vector [channels].

    Raises:
        UserError: an activation is not finite.
    """
    ranges: dict[str, Tensor] = {}
    watched = Watched(model)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # OPT gives its MLP [batch · length, channels], everything else is [batch, length, channels].
            largest = inputs[0].flatten(0, -2)[watched.mask.flatten()].abs().amax(0)
            ranges[name] = torch.maximum(ranges[name], largest) if name in ranges else largest

        return model.get_submodule(name).register_forward_pre_hook(hook)

    watched.run(map(watch, names), batches)
    for name, largest in ranges.items():
        if not bool(largest.isfinite().all()):
            raise UserError(f"calibration: the input of {name} is not finite")
    return ranges
