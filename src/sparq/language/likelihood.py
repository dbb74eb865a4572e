"""How likely a model finds the targets of examples: batches of like length, and the likelihood of each example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from sparq.language.tasks import IGNORED, Example
from sparq.quantization.calibration import evaluating, model_inputs

PADDED_TOKENS = 4096


def padded_batches(examples: Iterable[Example], padded_tokens: int = PADDED_TOKENS) -> Iterator[dict[str, Tensor]]:
    """Batch examples of like length, padded on the right.

    Args:
        examples: any number of them; they are sorted, so the longest batch comes first.
        padded_tokens: most tokens in a batch, padding included; a longer example has a batch to itself.

    Yields:
        "input_ids", "attention_mask" and "labels", each [batch, length].
    """
    examples = list(examples)
    for chosen in _alike([len(one.input_ids) for one in examples], padded_tokens):
        yield _pad([examples[index] for index in chosen])


def log_likelihoods(
    model: PreTrainedModel, examples: Sequence[Example], padded_tokens: int = PADDED_TOKENS
) -> list[float]:
    """Log-likelihood of each example's target, its end included, in nats.

    Args:
        model: a causal language model; it runs in evaluation mode, on its own device.
        examples: none longer than the model's positions.
        padded_tokens: see `padded_batches`.
    """
    found = [0.0] * len(examples)
    with evaluating(model):
        for chosen in _alike([len(one.input_ids) for one in examples], padded_tokens):
            batch = _pad([examples[index] for index in chosen])
            logits = model(**model_inputs(model, batch), use_cache=False).logits[:, :-1]
            labels = batch["labels"][:, 1:].to(logits.device)
            losses = cross_entropy(logits.mT.float(), labels, ignore_index=IGNORED, reduction="none").double().sum(1)
            for index, loss in zip(chosen, losses.tolist(), strict=True):
                found[index] = -loss
    return found


def _alike(lengths: Sequence[int], padded_tokens: int) -> Iterator[list[int]]:
    """Cut the order from the longest to the shortest into batches."""
    chosen: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if chosen and (len(chosen) + 1) * lengths[chosen[0]] > padded_tokens:
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def _pad(examples: Sequence[Example]) -> dict[str, Tensor]:
    shape = len(examples), max(len(one.input_ids) for one in examples)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for row, one in enumerate(examples):
        length = len(one.input_ids)
        batch["input_ids"][row, :length] = torch.as_tensor(one.input_ids)
        batch["attention_mask"][row, :length] = 1
        batch["labels"][row, :length] = torch.as_tensor(one.labels)
    return batch
