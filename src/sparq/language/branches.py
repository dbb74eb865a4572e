"""Prompts that go on in several ways at once, a piece at a time: what a beam search reads with.

All branches of a prompt stand in one row of the cache, one behind another, and each sees the prompt and its own
ancestors alone (:mod:`sparq.language.prefix_tree`). So a prompt is kept once for all of its branches, and nothing is
copied where they change places. A model that cannot read so gets a row for each branch, and its cache is put in their
order at every step.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparq.language.generation import left_padded
from sparq.language.prefix_tree import hidden, reads_trees
from sparq.quantization.calibration import model_inputs

_CROWDED = 0.7  # share of the cache that branches see, up to which it is tidied: that copies it once


class Branches(abc.ABC):
    """The branches of some prompts, as many of each.

    Attributes:
        logits: of the piece behind each branch, ``[prompts, branches, vocabulary]``; at first each prompt has one.
    """

    logits: Tensor

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        """Read prompts.

        Args:
            model: a causal language model in evaluation mode; gradients are off.
            prompts: ids of each, at least one.
            pad_id: what fills the shorter ones.
        """
        ids, mask = left_padded(prompts, pad_id, model.device)
        inputs = model_inputs(model, {"input_ids": ids, "attention_mask": mask})
        self._model, self._mask, self._last = model, inputs["attention_mask"], inputs["position_ids"][:, -1:]
        made = model(**inputs, use_cache=True, logits_to_keep=1)
        self._cache, self.logits = made.past_key_values, made.logits[:, -1:]

    @abc.abstractmethod
    def grow(self, prompts: Sequence[int], parents: Sequence[Sequence[int]], pieces: Sequence[Sequence[int]]) -> None:
        """Let some prompts go on, and forget the others.

        Args:
            prompts: numbers of those that go on; the next call numbers them anew.
            parents: of each of them the branches that its new ones grow from, as many for all.
            pieces: what each new branch is longer by.
        """


class _Tree(Branches):
    """A row for each prompt; ``_mask`` [prompts, branches, cached] tells what the end of a branch sees."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        super().__init__(model, prompts, pad_id)
        self._mask = self._mask[:, None].bool()

    def grow(self, prompts: Sequence[int], parents: Sequence[Sequence[int]], pieces: Sequence[Sequence[int]]) -> None:
        device = self._model.device
        kept, ids = torch.tensor(prompts, device=device), torch.tensor(pieces, device=device)
        if len(kept) < len(self._last):
            self._cache.reorder_cache(kept)
        self._mask = self._mask[kept[:, None], torch.tensor(parents, device=device)]
        self._forget()
        itself = torch.eye(ids.shape[1], dtype=torch.bool, device=device).expand(len(kept), -1, -1)
        self._mask = torch.cat([self._mask, itself], dim=2)
        self._last = self._last[kept] + 1
        made = self._model(
            input_ids=ids,
            attention_mask=hidden(self._mask, self._model.dtype)[:, None],
            position_ids=self._last.expand(ids.shape),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache, self.logits = made.past_key_values, made.logits

    def _forget(self) -> None:
        """Drop from the cache what no branch sees, where that is a good part of it."""
        seen = self._mask.any(dim=1)
        most = int(seen.sum(dim=1).max())
        if most > _CROWDED * seen.shape[1]:
            return
        places = (~seen).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        self._mask = self._mask.gather(2, places[:, None].expand(-1, self._mask.shape[1], -1))
        for layer in self._cache.layers:
            wanted = places[:, None, :, None].expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys, layer.values = layer.keys.gather(2, wanted), layer.values.gather(2, wanted)


class _Rows(Branches):
    """A row for each branch, those of a prompt together; ``_mask`` [rows, cached] hides what fills the prompts."""

    def grow(self, prompts: Sequence[int], parents: Sequence[Sequence[int]], pieces: Sequence[Sequence[int]]) -> None:
        device = self._model.device
        ids, before = torch.tensor(pieces, device=device), self.logits.shape[1]
        rows = (torch.tensor(prompts, device=device)[:, None] * before + torch.tensor(parents, device=device)).flatten()
        self._cache.reorder_cache(rows)
        self._mask = torch.cat([self._mask[rows], torch.ones_like(rows)[:, None]], dim=1)
        self._last = self._last[rows] + 1
        made = self._model(
            input_ids=ids.view(-1, 1),
            attention_mask=self._mask,
            position_ids=self._last,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache, self.logits = made.past_key_values, made.logits.view(*ids.shape, -1)


def begin(model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> Branches:
    """Read prompts by the quicker of the two ways that a model allows; see :class:`Branches`."""
    return (_Tree if reads_trees(model) else _Rows)(model, prompts, pad_id)
