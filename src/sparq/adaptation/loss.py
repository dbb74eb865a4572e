"""The cross-entropy of the pieces that count, with logits for these alone.

What a sequence is given, and padding, have no loss, which is half of it and more. The output layer over the words of a
pretrained model is a fifth of SmolLM2-135M's arithmetic, and its logits take 200 kB a piece, so it is computed where
something is to be predicted and nowhere else. The loss and its gradient stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import PreTrainedModel

from sparq.language.tasks import IGNORED


class Teacher(Protocol):
    """Says what comes next at some positions (:class:`sparq.adaptation.teacher.TextTeacher`)."""

    def positions(self, labels: Tensor) -> Tensor:
        """Which they are: bool [sequences, longest - 1], among ``labels`` without the first column."""
        ...

    def probabilities(self, labels: Tensor) -> Tensor:
        """How likely each word is at these: [positions, words], the first ids of the vocabulary."""
        ...


@contextmanager
def logits_where_labels_count(model: PreTrainedModel, labels: Tensor) -> Iterator[None]:
    """Within this context the model's logits are [counted labels, vocabulary], in the order of the batch.

    Args:
        model: a causal language model; what wraps it may be called in its place.
        labels: int64 [sequences, longest], those of the ids that it will be called with, not yet shifted.
    """
    counted = labels[:, 1:] != IGNORED

    def only_counted(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (states[0][:, :-1][counted],)

    output: Any = model.get_output_embeddings()
    hook = output.register_forward_pre_hook(only_counted)
    try:
        yield
    finally:
        hook.remove()


def counted_loss(
    outputs: Mapping[str, Tensor],
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    *,
    smoothing: float = 0.0,
    teacher: Teacher | None = None,
) -> Tensor:
    """Cross-entropy of such logits in nats, as transformers' Trainer wants it.

    Args:
        outputs: "logits" [counted labels, vocabulary].
        labels: as above.
        num_items_in_batch: what the sum is divided by: the labels of all batches of a step; None for those of this one.
        smoothing: probability given to all pieces evenly.
        teacher: says how likely each word is at some of the positions, in place of their labels; it is not smoothed.
    """
    logits = outputs["logits"].float()
    labels = labels.to(logits.device)
    counted = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][counted]
    count = len(targets)
    taught = logits.new_zeros(())
    if teacher is not None and (asked := teacher.positions(labels)[counted]).any():
        # What a teacher that knows words alone gives to other pieces is nothing.
        likely = teacher.probabilities(labels)
        taught = -(likely * log_softmax(logits[asked], dim=-1)[:, : likely.shape[1]]).sum()
        logits, targets = logits[~asked], targets[~asked]
    total = taught + cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    return total / (count if num_items_in_batch is None else num_items_in_batch)
