"""What several prompts find likeliest together: a beam search whose pieces are chosen by the mean over all of them.

Speech that is heard in several ways (:mod:`sparq.speech.views`) has as many prompts, and one text. A search for each
goes wrong where its own units are wrong, and the right text may be in none of the beams. Here all prompts score the
same beams, by the mean of log p(piece | prompt, pieces before): a product of experts, as when an ensemble of models is
decoded. It costs what the searches would cost together. With one prompt it is the search of transformers' ``generate``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparq.attention.install import base_model
from sparq.language.branches import begin
from sparq.language.generation import GenerationOptions, allowed_ids, batches, require_room
from sparq.language.vocabulary import Modality, Vocabulary
from sparq.quantization.calibration import evaluating


@dataclasses.dataclass(frozen=True)
class Answer:
    """What prompts go on with.

    Attributes:
        ids: its pieces, without the end.
        log_likelihood: of these and the end in nats, the mean over the prompts.
    """

    ids: list[int]
    log_likelihood: float


def search_together(
    model: Any,
    vocabulary: Vocabulary,
    groups: Sequence[Sequence[Sequence[int]]],
    target: Modality,
    options: GenerationOptions,
    *,
    margin: float = math.inf,
    batch: int = 16,
) -> list[list[Answer]]:
    """Find what all prompts of a group would go on with.

    Args:
        model: a causal language model, or a PEFT model around one.
        vocabulary: what its ids mean.
        groups: prompts of each group, at least one.
        target: what is to be generated.
        options: method "beam", or "greedy" for a beam of 1.
        margin: nats behind the best at which a beam is given up, so that a search is as wide as it is unsure.
        batch: prompts at once, but those of a group are never parted; what comes out does not depend on it.

    Returns:
        For each group the answers that the search ends with, the best first.

    Raises:
        UserError: a prompt is empty or leaves no position to generate at.
    """
    base: Any = base_model(model)
    context = require_room(base, [prompt for prompts in groups for prompt in prompts])
    forbidden = ~allowed_ids(base, vocabulary, target)
    found: list[list[Answer]] = [[] for _ in groups]
    with evaluating(base):
        for count in sorted(set(map(len, groups))):
            alike = [index for index, prompts in enumerate(groups) if len(prompts) == count]
            lengths = [max(map(len, groups[index])) for index in alike]
            for chosen in batches(lengths, max(1, batch // count), context - options.max_pieces):
                room = min(options.max_pieces, context - lengths[chosen[-1]])
                searches = [_Beams(options, vocabulary.end_id, room, margin) for _ in chosen]
                prompts = [prompt for place in chosen for prompt in groups[alike[place]]]
                _search(base, searches, prompts, vocabulary.pad_id, forbidden)
                for place, search in zip(chosen, searches, strict=True):
                    found[alike[place]] = search.answers
    return found


class _Beams:
    """The beams of one group.

    Args:
        options: how wide and how long.
        end_id: what ends an answer.
        room: pieces that an answer may have.
        margin: see :func:`search_together`.

    Attributes:
        alive: pieces of each beam that may go on, the best first.
    """

    def __init__(self, options: GenerationOptions, end_id: int, room: int, margin: float) -> None:
        self._width, self._penalty, self._least = options.answers, options.length_penalty, options.min_pieces
        self._end, self._room, self._margin = end_id, room, margin
        self._scores = np.zeros(1)
        self._ended: list[tuple[float, Answer]] = []
        self.alive: list[list[int]] = [[]]

    def step(self, log_probabilities: np.ndarray) -> list[int]:
        """Go on by a piece, and say from which beam each of those that are alive then comes.

        Args:
            log_probabilities: of the next piece of each beam, ``[beams, pieces]``.
        """
        scores = self._scores[:, None] + log_probabilities
        length = len(self.alive[0]) + 1
        if length <= self._least:
            scores[:, self._end] = -np.inf
        size = min(2 * self._width, scores.size)  # as many as there are beside any ends
        best = np.argpartition(-scores, size - 1, axis=None)[:size]
        least = max([scores.max(), *(its.log_likelihood for _, its in self._ended)]) - self._margin
        parents: list[int] = []
        alive: list[list[int]] = []
        kept: list[float] = []
        for rank, place in enumerate(best[np.argsort(-scores.flat[best], kind="stable")]):
            (parent, piece), score = divmod(int(place), scores.shape[1]), float(scores.flat[place])
            if score == -np.inf or score < least or len(alive) == self._width:
                break
            if piece != self._end:
                parents.append(parent)
                alive.append([*self.alive[parent], piece])
                kept.append(score)
            elif rank < self._width:
                self._ended.append((score / length**self._penalty, Answer(self.alive[parent], score)))
        self.alive, self._scores = alive, np.array(kept)
        self._ended = sorted(self._ended, key=lambda its: -its[0])[: self._width]
        return parents

    @property
    def over(self) -> bool:
        """Whether nothing that is alive could still be among the answers."""
        if not self.alive or len(self.alive[0]) == self._room:
            return True
        # A score is below 0, and the longest answer divides it by most.
        hope = self._scores[0] / (self._room if self._penalty > 0 else len(self.alive[0])) ** self._penalty
        return len(self._ended) == self._width and self._ended[-1][0] >= hope

    @property
    def answers(self) -> list[Answer]:
        """The answers, the best first; beams that had no room for their end are among them."""
        alive = map(Answer, self.alive, self._scores.tolist())
        full = bool(self.alive) and len(self.alive[0]) == self._room
        whole = [(its.log_likelihood / len(its.ids) ** self._penalty, its) for its in alive if full]
        found = [its for _, its in sorted([*self._ended, *whole], key=lambda its: -its[0])]
        least = max((its.log_likelihood for its in found), default=0.0) - self._margin
        return [its for its in found if its.log_likelihood >= least][: self._width]


def _search(
    model: Any, searches: Sequence[_Beams], prompts: Sequence[Sequence[int]], pad_id: int, forbidden: torch.Tensor
) -> None:
    """Carry searches to their ends; prompts are ordered by search."""
    count, going = len(prompts) // len(searches), list(searches)
    branches = begin(model, prompts, pad_id)
    while True:
        scores = branches.logits.float().log_softmax(-1).masked_fill(forbidden, -torch.inf)
        scores = scores.unflatten(0, (len(going), count)).mean(1).cpu().numpy()
        parents = [search.step(its[: len(search.alive)]) for search, its in zip(going, scores, strict=True)]
        left = [place for place, search in enumerate(going) if not search.over]
        if not left:
            return
        wide = max(len(parents[place]) for place in left)
        branches.grow(
            [place * count + prompt for place in left for prompt in range(count)],
            [_filled(parents[place], wide) for place in left for _ in range(count)],
            [_filled([its[-1] for its in going[place].alive], wide) for place in left for _ in range(count)],
        )
        going = [going[place] for place in left]


def _filled(numbers: list[int], size: int) -> list[int]:
    """Repeat the first of some numbers until there are enough; what its copies score is not looked at."""
    return [*numbers, *numbers[:1] * (size - len(numbers))]
