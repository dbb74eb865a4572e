"""Sequences that begin alike, read together: what they share is read once.

The transcripts that a search ends with differ by a word or two. They are the branches of a tree, each node of which is
a token behind those on its way from the root. A model reads the tree as one sequence in which a token sees its
ancestors alone, at the position that its depth gives it ("tree attention", Miao et al. 2023, SpecInfer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparq.quantization.calibration import evaluating

NODES = 512


@dataclasses.dataclass
class _Tree:
    """Nodes in the order of their ids; a sequence is the path to the last of its own.

    Attributes:
        ids: token of each node.
        parents: number of the node before it, its own where there is none.
        paths: by the number of a sequence, its nodes.
    """

    ids: list[int] = dataclasses.field(default_factory=list)
    parents: list[int] = dataclasses.field(default_factory=list)
    paths: dict[int, list[int]] = dataclasses.field(default_factory=dict)


def reads_trees(model: Any) -> bool:
    """Whether a model of transformers lets any token be hidden from any other, in all of its layers."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds and getattr(config, "sliding_window", None):
        return False  # what has left the window is gone from the cache, too
    return bool(getattr(model, "_supports_attention_backend", False)) and kinds <= {"full_attention"}


def hidden(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Write what may be seen, of any shape, as numbers to add to scores, which all kinds of attention take."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def tree_log_likelihoods(model: Any, sequences: Sequence[Sequence[int]], nodes: int = NODES) -> list[float]:
    """Log-likelihood of each sequence behind its first token, in nats.

    Args:
        model: a causal language model that :func:`reads_trees`; it runs in evaluation mode, on its own device.
        sequences: ids, at least one each, none longer than the model's positions.
        nodes: most tokens of a tree; a longer sequence has one to itself.
    """
    found = [0.0] * len(sequences)
    with evaluating(model):
        for tree in _trees(sequences, nodes):
            costs = _costs(model, tree)
            for number, path in tree.paths.items():
                found[number] = -sum(costs[node] for node in path[1:])
    return found


def _trees(sequences: Sequence[Sequence[int]], nodes: int) -> Iterator[_Tree]:
    """Grow trees in lexical order, in which sequences stand beside those that they share most with."""
    tree, last = _Tree(), -1
    for number in sorted(range(len(sequences)), key=lambda it: list(sequences[it])):
        ids = sequences[number]
        shared = _common(sequences[last], ids) if tree.ids else 0
        if tree.ids and len(tree.ids) + len(ids) - shared > nodes:
            yield tree
            tree, shared = _Tree(), 0
        path = tree.paths[last][:shared] if shared else []
        for one in ids[shared:]:
            node = len(tree.ids)
            tree.ids.append(one)
            tree.parents.append(path[-1] if path else node)
            path.append(node)
        tree.paths[number], last = path, number
    if tree.ids:
        yield tree


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the ids with which both begin."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _costs(model: Any, tree: _Tree) -> list[float]:
    """Give -log p of each node behind its ancestors; what stands for a root means nothing."""
    count = len(tree.ids)
    seen = torch.zeros(count, count, dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        seen[node] = seen[parent]
        seen[node, node] = True
    ids, parents = torch.tensor(tree.ids, device=model.device), torch.tensor(tree.parents, device=model.device)
    logits = model(
        input_ids=ids[None],
        attention_mask=hidden(seen, model.dtype)[None, None].to(model.device),
        position_ids=(seen.sum(1) - 1)[None].to(model.device),
        use_cache=False,
    ).logits[0]
    costs: list[float] = cross_entropy(logits[parents].float(), ids, reduction="none").double().tolist()
    return costs
