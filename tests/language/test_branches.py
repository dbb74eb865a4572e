"""Branches of prompts read by both ways, and by the definition: each branch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from sparq.attention import install
from sparq.language.branches import _Rows, _Tree, begin

PROMPTS = [[1, 5, 3, 2, 7, 7], [4, 6], [1, 5, 3]]
STEPS = [  # which prompts go on, from which branch, by what; the numbers are those of the step before
    ([0, 1, 2], [[0, 0, 0]] * 3, [[1, 2, 3], [4, 5, 6], [7, 1, 1]]),
    ([0, 1, 2], [[2, 2, 0, 1], [1, 0, 0, 0], [0, 1, 2, 0]], [[3, 4, 3, 5], [1, 2, 3, 4], [6, 6, 6, 2]]),
    ([0, 2], [[3, 0], [1, 1]], [[2, 2], [5, 1]]),
    ([1], [[1, 0, 1]], [[4, 3, 3]]),
]


def alone(model, ids):
    return model(torch.tensor([ids])).logits[0, -1]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("sink", ["none", "max", "zero", "mean"])
@pytest.mark.parametrize("way", [_Tree, _Rows])
def test_each_branch_goes_on_as_if_alone(make_tiny, vocabulary, kind, sink, way):
    model = install(make_tiny(kind, vocabulary), sink).eval()
    branches, texts = way(model, PROMPTS, pad_id=0), [[its] for its in PROMPTS]
    for prompts, parents, pieces in [([*range(3)], None, None), *STEPS]:
        if pieces:
            branches.grow(prompts, parents, pieces)
            texts = [
                [[*texts[one][a], piece] for a, piece in zip(its, new, strict=True)]
                for one, its, new in zip(prompts, parents, pieces, strict=True)
            ]
        expected = torch.stack([torch.stack([alone(model, ids) for ids in its]) for its in texts])
        torch.testing.assert_close(branches.logits, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_tree_copies_no_row(make_tiny, vocabulary, monkeypatch):
    model = make_tiny("llama", vocabulary).eval()
    copied = []
    monkeypatch.setattr(DynamicCache, "reorder_cache", lambda self, rows: copied.append(rows))
    branches = begin(model, PROMPTS, pad_id=0)
    for prompts, parents, pieces in STEPS[:2]:
        branches.grow(prompts, parents, pieces)
    assert not copied
    assert isinstance(branches, _Tree)


def test_random_growth_gives_both_ways_the_same(make_tiny, vocabulary):
    model, random = make_tiny("gpt2", vocabulary, positions=64).eval(), np.random.default_rng(0)
    with torch.no_grad():
        ways, width, count = [way(model, PROMPTS, pad_id=0) for way in (_Tree, _Rows)], 1, 3
        grown = max(map(len, PROMPTS))
        for _ in range(20):
            kept = sorted(random.permutation(count)[: max(1, count - (random.random() < 0.1))].tolist())
            wide = int(random.integers(1, 6))
            step = (
                kept,
                random.integers(width, size=(len(kept), wide)).tolist(),
                random.integers(1, 9, (len(kept), wide)).tolist(),
            )
            for one in ways:
                one.grow(*step)
            width, count, grown = wide, len(kept), grown + wide
            torch.testing.assert_close(ways[0].logits, ways[1].logits, rtol=1e-9, atol=1e-9)
    assert ways[0]._cache.get_seq_length() < grown / 2  # what no branch sees is forgotten
