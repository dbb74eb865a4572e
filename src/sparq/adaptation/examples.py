"""Endless batches of the four tasks, sized by padded tokens, the same again for the same seed.

A *batch bin* counts padded tokens: the longest sequence of a batch times the number of its sequences (VoxtLM). Within
a pool of examples the batches are cut along the sorted lengths, so that padding stays small, and then shuffled.

Where a voice has told when each word was said, an example may be a *span*: some words of a sentence with the units
spoken during them. Short spans first is what makes a small model find the alignment between units and text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import IterableDataset

from sparq.config import CurriculumConfig
from sparq.errors import UserError
from sparq.language.tasks import IGNORED, TASKS, Example, example
from sparq.language.vocabulary import Vocabulary

POOL = 4096  # examples sorted together


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A sentence that was said.

    Attributes:
        text: the sentence.
        units: raw units [frames], or empty where there is text alone.
        starts, ends: first frame of each word of ``text.split()`` and the one after its last, or None.
    """

    text: str
    units: np.ndarray
    starts: np.ndarray | None = None
    ends: np.ndarray | None = None

    @property
    def words(self) -> int:
        """Number of words."""
        return len(self.text.split())

    def span(self, first: int, last: int) -> Utterance:
        """Words ``first`` to ``last`` (not included), with the units spoken during them."""
        if self.starts is None or self.ends is None:
            raise UserError(f"{self.text[:40]!r}: has no word times, so it has no spans")
        text = " ".join(self.text.split()[first:last])
        return Utterance(text, self.units[self.starts[first] : self.ends[last - 1]])


class ExampleStream(IterableDataset[dict[str, torch.Tensor]]):
    """Endless, reproducible batches drawn from utterances by task weights.

    Every item is a whole batch: ``input_ids`` and ``labels`` int64 [sequences, longest], padded on the right. There is
    no attention mask: behind a causal model what is padded on the right can reach nothing that counts.

    Args:
        utterances: what to draw from.
        vocabulary: how it is written.
        task_weights: task name → share of the examples.
        batch_bins: padded tokens a batch.
        seed: of all draws.
        curriculum: how long examples may be as batches go by; None sets no limit.
        maximum_length: longer examples are left out (and would not fit the model).

    Raises:
        UserError: no utterances, an unknown task, no positive weight, or bins too small for one example.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        vocabulary: Vocabulary,
        task_weights: Mapping[str, float],
        batch_bins: int,
        seed: int = 0,
        curriculum: CurriculumConfig | None = None,
        maximum_length: int = 1024,
    ) -> None:
        unknown = sorted(set(task_weights) - set(TASKS))
        if unknown:
            raise UserError(f"task_weights: {unknown[0]!r} is not a task (expected {', '.join(TASKS)})")
        total = sum(task_weights.values())
        if total <= 0 or min(task_weights.values()) < 0:
            raise UserError(f"task_weights: {dict(task_weights)} (expected weights of 0 or more, not all 0)")
        spoken = [u for u in utterances if len(u.units)]
        if not utterances or (not spoken and any(w for t, w in task_weights.items() if t != "textlm")):
            raise UserError("no utterances to train on")
        self._spoken = spoken
        self._all = list(utterances)
        self._spans = [u for u in spoken if u.starts is not None]
        self._vocabulary = vocabulary
        self._tasks = [TASKS[name] for name in task_weights]
        self._shares = np.array(list(task_weights.values()), float) / total
        self._bins = batch_bins
        self._seed = seed
        self._curriculum = curriculum or CurriculumConfig(batches=0)
        self._maximum_length = min(maximum_length, batch_bins)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that hold as many examples as there are utterances, as the first pool is cut."""
        pool, batches = self._pool(0, 0)
        return max(1, round(len(batches) * len(self._all) / len(pool)))

    def _draw(self, random: np.random.Generator, limit: int | None) -> Example | None:
        task = self._tasks[random.choice(len(self._tasks), p=self._shares)]
        bounded = limit is not None or random.random() < self._curriculum.spans
        if bounded and self._spans:
            utterance = self._spans[random.integers(len(self._spans))]
            longest = min(utterance.words, limit or utterance.words)
            count = int(random.integers(1, longest + 1))
            first = int(random.integers(0, utterance.words - count + 1))
            utterance = utterance.span(first, first + count)
        else:
            source = self._all if task.name == "textlm" else self._spoken
            utterance = source[random.integers(len(source))]
            if limit is not None and utterance.words > limit:
                return None
        made = example(task, self._vocabulary, text=utterance.text, units=utterance.units)
        # A span whose words were swallowed has no units, and text may hold nothing that can be written.
        empty = not utterance.text or (task.name != "textlm" and len(utterance.units) < 2)
        return None if empty or len(made.input_ids) > self._maximum_length else made

    def _pool(self, index: int, batch: int) -> tuple[list[Example], list[list[Example]]]:
        """Draw the examples of a pool and cut them into batches, shuffled."""
        random = np.random.default_rng((self._seed, index))
        limit = self._curriculum.limit(batch)
        drawn = (self._draw(random, limit) for _ in range(POOL))
        pool = sorted((e for e in drawn if e is not None), key=lambda e: len(e.input_ids))
        if not pool:
            raise UserError("batch_bins: no example fits the model or a batch")
        batches = list(self._cut(pool))
        return pool, [batches[i] for i in random.permutation(len(batches))]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        count = 0
        for index in range(2**62):
            for batch in self._pool(index, count)[1]:
                yield collate(batch, self._vocabulary.pad_id)
                count += 1

    def _cut(self, pool: Sequence[Example]) -> Iterator[list[Example]]:
        batch: list[Example] = []
        for made in pool:
            if batch and (len(batch) + 1) * len(made.input_ids) > self._bins:
                yield batch
                batch = []
            batch.append(made)
        yield batch


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad examples on the right into ``input_ids`` and ``labels``, int64 [sequences, longest]."""
    longest = max(len(e.input_ids) for e in examples)
    ids = torch.full((len(examples), longest), pad_id)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, made in enumerate(examples):
        ids[row, : len(made.input_ids)] = torch.tensor(made.input_ids)
        labels[row, : len(made.labels)] = torch.tensor(made.labels)
    return {"input_ids": ids, "labels": labels}
