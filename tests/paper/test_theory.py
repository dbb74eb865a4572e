"""Theorem C.1 and lemma C.1 in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparq.errors import UserError
from sparq.paper.demonstration import demonstrate, random_pair
from sparq.paper.theory import Transformer, adapt_product, adapters, gaps, sufficient_rank

MATRICES = ("query", "key", "value", "output", "first", "second")


def matrices(transformer):
    """All adapters of a model, a head at a time."""
    yield transformer.head
    for block in transformer.blocks:
        for name in MATRICES:
            value = getattr(block, name)
            yield from value if value.ndim == 3 else [value]


def plain(transformer, x, sink):
    """Definition C.2 once more, column by column, with the softmax written out."""

    def columns(scores):
        found = []
        for column in scores.T:
            shifted = column - column.max() if sink == "max" else column
            found.append(shifted.exp() / (shifted.exp().sum() + (0 if sink == "none" else 1)))
        return torch.stack(found, dim=1)

    for block in transformer.blocks:
        attended = torch.zeros_like(x)
        for q, k, v, o in zip(block.query, block.key, block.value, block.output, strict=True):
            attended += o @ v @ x @ columns((k @ x).T @ (q @ x))
        hidden = (block.first @ attended + block.first_bias[:, None]).clamp(min=0)
        x = block.second @ hidden + block.second_bias[:, None]
    return columns(transformer.head @ x)


def words(width, count, seed=5):
    return torch.randn(width, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sink", ["max", "zero", "none"])
def test_the_model_is_that_of_definition_c2(sink):
    frozen, _ = random_pair(5, 2, 2, 2, seed=0)
    x = words(5, 4)
    torch.testing.assert_close(frozen(x, sink), plain(frozen, x, sink), rtol=1e-10, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 7), st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 1000))
def test_the_adapted_model_is_the_target_from_the_sufficient_rank_on(width, heads, blocks, gap, seed):
    gap = min(gap, width)
    frozen, target = random_pair(width, heads, blocks, gap, seed)
    assert gaps(frozen, target) == [gap] * (blocks + 1)
    rank = sufficient_rank(frozen, target)
    assert rank == -(-gap // 2)
    x = words(width, 6, seed)
    # Two random models can both be sure of the same words; then there is nothing that an adapter would have to do.
    assume((frozen(x) - target(x)).abs().max() > 1e-6)
    for enough in (rank, min(rank + 1, width)):
        made = adapters(frozen, target, enough)
        assert all(int(torch.linalg.matrix_rank(delta, rtol=1e-9)) <= enough for delta in matrices(made))
        # Adapters on W_1 and on all W_2 but the last are zero, as the theorem has it.
        assert not any(block.first.any() for block in made.blocks)
        assert not any(block.second.any() for block in made.blocks[:-1])
        # Sinks of every kind: the theorem is not about Softmax_1.
        for sink in ("max", "zero", "none"):
            wanted = target(x, sink)
            torch.testing.assert_close(frozen.adapted(made)(x, sink), wanted, rtol=1e-6, atol=1e-7)


def test_to_float64_precision_and_not_below_the_rank():
    shown = demonstrate()
    assert shown.gaps == [7, 7, 7]
    assert shown.sufficient == 4
    assert list(shown.deviations) == [1, 2, 3, 4, 5]
    assert all(deviation > 1e-2 for rank, deviation in shown.deviations.items() if rank < 4)
    assert all(deviation < 1e-14 for rank, deviation in shown.deviations.items() if rank >= 4)


def test_the_largest_gap_decides():
    frozen, target = random_pair(6, 2, 2, 2, seed=1)
    # A target whose second head in the second block is another one altogether.
    block = target.blocks[1]
    key = block.key.clone()
    key[1] = words(6, 6)
    harder = Transformer((target.blocks[0], dataclasses.replace(block, key=key)), target.head)
    assert gaps(frozen, harder) == [2, 6, 2]
    assert sufficient_rank(frozen, harder) == 3
    x = words(6, 5)
    for rank, exact in ((2, False), (3, True)):
        difference = (frozen.adapted(adapters(frozen, harder, rank))(x) - harder(x)).abs().max()
        assert bool(difference < 1e-10) is exact


def test_the_gap_is_not_necessary():
    """Heads in another order are the same function, with a gap and without an adapter."""
    frozen, _ = random_pair(6, 2, 2, 2, seed=0)
    turned = Transformer(
        tuple(
            dataclasses.replace(
                b, query=b.query.flip(0), key=b.key.flip(0), value=b.value.flip(0), output=b.output.flip(0)
            )
            for b in frozen.blocks
        ),
        frozen.head,
    )
    x = words(6, 5)
    torch.testing.assert_close(frozen(x), turned(x), rtol=1e-12, atol=1e-12)
    assert sufficient_rank(frozen, turned) == 3


def test_heads_that_are_narrower_than_the_model_break_the_assumption():
    frozen, target = random_pair(6, 2, 1, 2, seed=0)
    narrow = [
        dataclasses.replace(b, key=torch.cat([b.key[:, :3], torch.zeros(2, 3, 6).double()], 1)) for b in frozen.blocks
    ]
    with pytest.raises(UserError, match=r"block 1, head 1, scores: the matrices are singular"):
        adapters(Transformer(tuple(narrow), frozen.head), target, 1)


# ---- the lemma


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), st.integers(0, 1000))
def test_two_adapters_leave_the_next_singular_value_and_no_others_leave_less(width, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right, target = torch.randn(3, width, width, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(target - left @ right)
    least = float(values[2 * rank]) if 2 * rank < width else 0.0
    delta_left, delta_right = adapt_product(left, right, target, rank)
    made = (left + delta_left) @ (right + delta_right)
    scale = float(torch.linalg.cond(left) * torch.linalg.cond(right + delta_right))
    assert float(torch.linalg.matrix_norm(target - made, 2)) == pytest.approx(least, abs=1e-12 * scale * 100)
    for delta in (delta_left, delta_right):
        assert int(torch.linalg.matrix_rank(delta, rtol=1e-9)) <= rank
    others = torch.randn(4, width, rank, generator=generator, dtype=torch.float64)
    other = (left + others[0] @ others[1].T) @ (right + others[2] @ others[3].T)
    assert float(torch.linalg.matrix_norm(target - other, 2)) >= least - 1e-9


def test_a_singular_way_to_a_regular_target_is_refused():
    """What assumption C.1 excludes: both ends regular, the product with the first half of the error singular."""
    right = torch.tensor([[1.0, 1.0], [-3.0, -1.0]], dtype=torch.float64)
    target = right + torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert torch.linalg.det(right).abs() > 1
    assert torch.linalg.det(target).abs() > 1
    with pytest.raises(UserError, match=r"somewhere: the matrices are singular"):
        adapt_product(torch.eye(2, dtype=torch.float64), right, target, 1, "somewhere")
