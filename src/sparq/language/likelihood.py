"""How likely a model finds the targets of examples: batches of like length, and the likelihood of each example.

Several targets of one condition, such as the texts that may have been said in some units, are read behind one pass over
the condition where that is the longer part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
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
    for chosen in _alike(range(len(examples)), [len(one.input_ids) for one in examples], padded_tokens):
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
    lengths = [len(one.input_ids) for one in examples]
    shared = list(_of_one_condition(examples))
    alone = sorted({*range(len(examples))}.difference(*shared))
    with evaluating(model):
        for judge, group in [(_alone, alone), *((_behind_one_condition, group) for group in shared)]:
            for chosen in _alike(group, lengths, padded_tokens):
                for index, its in zip(chosen, judge(model, [examples[index] for index in chosen]), strict=True):
                    found[index] = its
    return found


def _of_one_condition(examples: Sequence[Example]) -> Iterator[list[int]]:
    """Give the numbers of examples whose condition is the same, and longer than the longest of their targets."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, one in enumerate(examples):
        groups[tuple(one.input_ids[: _start(one)])].append(index)
    for condition, group in groups.items():
        longest = max(len(examples[index].input_ids) for index in group)
        if len(group) > 1 and longest < 2 * len(condition):
            yield group


def _start(one: Example) -> int:
    """Count the ids before the first that counts."""
    return next((place for place, label in enumerate(one.labels) if label != IGNORED), len(one.labels))


def _alone(model: Any, examples: Sequence[Example]) -> list[float]:
    """Read each example whole."""
    batch = _pad(examples)
    logits = model(**model_inputs(model, batch), use_cache=False).logits[:, :-1]
    return _sums(logits, batch["labels"][:, 1:])


def _behind_one_condition(model: Any, examples: Sequence[Example]) -> list[float]:
    """Read a condition but for its last id, and behind it, by the cache, that id and each target."""
    before = _start(examples[0]) - 1
    condition = torch.tensor([examples[0].input_ids[:before]], device=model.device)
    cache = model(input_ids=condition, use_cache=True).past_key_values
    cache.reorder_cache(torch.zeros(len(examples), dtype=torch.long, device=model.device))
    batch = _pad([Example(one.input_ids[before:], one.labels[before:]) for one in examples])
    inputs = model_inputs(model, batch)
    inputs["attention_mask"] = pad(inputs["attention_mask"], (before, 0), value=1)
    inputs["position_ids"] += before
    logits = model(**inputs, past_key_values=cache, use_cache=True).logits[:, :-1]
    return _sums(logits, batch["labels"][:, 1:])


def _sums(logits: Tensor, labels: Tensor) -> list[float]:
    """Add up the log-likelihoods of labels [batch, length] by logits [batch, length, vocabulary]."""
    labels = labels.to(logits.device)
    losses = cross_entropy(logits.mT.float(), labels, ignore_index=IGNORED, reduction="none")
    return [-loss for loss in losses.double().sum(1).tolist()]


def _alike(numbers: Iterable[int], lengths: Sequence[int], padded_tokens: int) -> Iterator[list[int]]:
    """Cut the order of some examples from the longest to the shortest into batches."""
    chosen: list[int] = []
    for index in sorted(numbers, key=lengths.__getitem__, reverse=True):
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
