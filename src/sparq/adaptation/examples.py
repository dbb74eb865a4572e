"""Endless batches of the four tasks, sized by padded tokens, the same again for the same seed.

A *batch bin* counts padded tokens: the longest sequence of a batch times the number of its sequences (VoxtLM). Batches
are made in rounds: enough examples for a round are drawn and sorted by length, batches are cut along that order, so
that padding stays small, and then shuffled.

Where a voice has told when each word was said, an example may be a *span*: some words of a sentence with the units
spoken during them. Short spans first is what makes a small model find the alignment between units and text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import IterableDataset

from sparq.adaptation.unit_noise import UnitNoise
from sparq.config import CurriculumConfig
from sparq.corpus.utterance import Utterance
from sparq.errors import UserError
from sparq.language.tasks import IGNORED, TASKS, Example, Task, example
from sparq.language.vocabulary import Modality, Vocabulary

ROUND = 64  # batches cut along one order of lengths; fewer would pad more
_UNCOUNTED = 1 << 31  # more words than any limit allows
ATTEMPTS = 1000  # to draw an utterance that can be an example


class ExampleStream(IterableDataset[dict[str, torch.Tensor]]):
    """Endless, reproducible batches drawn from utterances by task weights.

    Every item is a whole batch: ``input_ids`` and ``labels`` int64 [sequences, longest], padded on the right. There is
    no attention mask: behind a causal model what is padded on the right can reach nothing that counts.

    Args:
        utterances: what to draw from.
        vocabulary: how it is written.
        task_weights: task name → share of the examples.
        batch_bins: padded tokens of a batch at most.
        seed: of all draws.
        curriculum: how long examples may be as batches go by (looked up at each round); None sets no limit.
        maximum_length: the model's positions; longer examples are left out.
        unit_noise: speech that is to be understood has up to this share of what other readers would say otherwise
            changed (:mod:`sparq.adaptation.unit_noise`), an evenly drawn share in each example.

    Attributes:
        vocabulary: see above.
        start: the batch that comes first.

    Raises:
        UserError: no utterances, an unknown task, no positive weight, nothing to learn the noise from; and as batches
            are made, nothing that is short enough for the bins, the positions or the curriculum.
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
        unit_noise: float = 0.0,
    ) -> None:
        unknown = sorted(set(task_weights) - set(TASKS))
        if unknown:
            raise UserError(f"task_weights: {unknown[0]!r} is not a task (expected {', '.join(TASKS)})")
        total = sum(task_weights.values())
        if total <= 0 or min(task_weights.values()) < 0:
            raise UserError(f"task_weights: {dict(task_weights)} (expected weights of 0 or more, not all 0)")
        self._tasks = [TASKS[name] for name, weight in task_weights.items() if weight]
        self._shares = np.cumsum([weight for weight in task_weights.values() if weight]) / total
        self._served = {task.name: _ByLength(u for u in utterances if u.serves(task)) for task in self._tasks}
        self._timed = {
            task.name: _ByLength(u for u in utterances if u.serves(task) and u.starts is not None)
            for task in self._tasks
        }
        for name, served in self._served.items():
            if not served:
                raise UserError(f"task_weights: {name} has nothing to learn from (no utterances with what it needs)")
        self._count = sum(any(u.serves(task) for task in self._tasks) for u in utterances)
        self.vocabulary = vocabulary
        self._bins = batch_bins
        self._seed = seed
        self._curriculum = curriculum or CurriculumConfig(batches=0)
        self._longest = min(maximum_length, batch_bins)
        self._noise = UnitNoise.learn(utterances, vocabulary.units, seed) if unit_noise else None
        self._noisiest = unit_noise
        self.start = 0

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that hold as many examples as there are utterances, once there is no limit of words."""
        batches = self._round(0, None)
        return max(1, round(self._count * len(batches) / sum(map(len, batches))))

    def starting_at(self, batch: int) -> ExampleStream:
        """The same stream without its first batches; earlier rounds are not made again."""
        later = copy.copy(self)
        later.start = batch
        return later

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batch = self.start
        while True:
            index, done = divmod(batch, ROUND)
            for examples in self._round(index, self._curriculum.limit(index * ROUND))[done:]:
                yield collate(examples, self.vocabulary.pad_id)
                batch += 1

    def _round(self, index: int, limit: int | None) -> list[list[Example]]:
        """Make the batches of a round, with at most ``limit`` words in an example."""
        random = np.random.default_rng((self._seed, index))
        drawn: list[Example] = []
        room = ROUND * self._bins
        while room > 0:
            task = self._tasks[int(np.searchsorted(self._shares[:-1], random.random(), "right"))]
            # Text alone has nothing to be aligned with.
            drawn.append(self._example(task, random, None if task.name == "textlm" else limit))
            room -= len(drawn[-1].input_ids)
        batches = list(_cut(sorted(drawn, key=_length), self._bins))
        # So many examples fill a round and a little more; what is left over is as random as what is taken.
        return [batches[i] for i in random.permutation(len(batches))[:ROUND]]

    def _example(self, task: Task, random: np.random.Generator, limit: int | None) -> Example:
        for _ in range(ATTEMPTS):
            utterance = self._draw(task, random, limit)
            # Text may hold nothing that can be written, and a word may be so swallowed that it has no units.
            if not utterance.serves(task) or (utterance.text and not self.vocabulary.write_text(utterance.text)):
                continue
            units = utterance.units
            if self._noise is not None and task.condition == Modality.SPEECH:
                units = self._noise(units, self._noisiest * random.random(), random)
            made = example(task, self.vocabulary, text=utterance.text, units=units)
            if len(made.input_ids) <= self._longest:
                return made
        raise UserError(
            f"batch_bins: {self._bins} (no example of {task.name} found that is as short, and fits into the model)"
        )

    def _draw(self, task: Task, random: np.random.Generator, limit: int | None) -> Utterance:
        bounded = limit is not None or random.random() < self._curriculum.spans
        timed = self._timed[task.name]
        if not (bounded and timed):
            return self._served[task.name].draw(random, limit)
        utterance = timed.draw(random, None)
        words = int(random.integers(1, min(utterance.words, limit or utterance.words) + 1))
        first = int(random.integers(0, utterance.words - words + 1))
        return utterance.span(first, first + words)


class _ByLength:
    """Utterances in the order of their numbers of words; speech alone, whose words nobody counted, behind all."""

    def __init__(self, utterances: Iterable[Utterance]) -> None:
        self._utterances = sorted(utterances, key=_words)
        self._words = np.array([_words(u) for u in self._utterances])

    def __len__(self) -> int:
        return len(self._utterances)

    def draw(self, random: np.random.Generator, limit: int | None) -> Utterance:
        """Draw one of at most so many words."""
        count = len(self) if limit is None else int(np.searchsorted(self._words, limit, "right"))
        if not count:
            raise UserError(
                f"curriculum.words: {limit} (no utterance is as short, and none has times to cut words out)"
            )
        return self._utterances[random.integers(count)]


def _words(utterance: Utterance) -> int:
    return utterance.words or _UNCOUNTED


def _length(made: Example) -> int:
    return len(made.input_ids)


def _cut(examples: Iterable[Example], bins: int) -> Iterator[list[Example]]:
    """Cut examples of rising length into batches of at most so many padded tokens."""
    batch: list[Example] = []
    for made in examples:
        if batch and (len(batch) + 1) * len(made.input_ids) > bins:
            yield batch
            batch = []
        batch.append(made)
    yield batch


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad examples on the right into ``input_ids`` and ``labels``, int64 [sequences, longest]."""
    shape = len(examples), max(map(_length, examples))
    ids, labels = np.full(shape, pad_id), np.full(shape, IGNORED)
    for row, made in enumerate(examples):
        ids[row, : len(made.input_ids)] = made.input_ids
        labels[row, : len(made.labels)] = made.labels
    return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
