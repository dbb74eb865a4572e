"""Appendix C.2 of the paper: what low-rank adapters can express (theorem C.1), as a construction.

The theorem: a frozen transformer becomes any target transformer of the same shape by adapters of rank R on its queries,
keys, values, outputs, last W_2 and output layer, and by other biases, if R ≥ max ⌈G_i / 2⌉. The gap G_i of block i is
the largest rank of a difference between the products that the two models compute with. `adapters` makes them.

What the statement has wrong, or leaves unsaid:

1. Assumption C.1 for l > 1 has W̄_{2,l−1}⁻¹ where the proof needs W̄_{2,l−1}·W_{2,l−1}⁻¹ (its second and fourth line); as
   printed it is about other matrices. The proof is right. Of the ranks r it asks about, only r = R is used.
2. Every head has its own square W_K, W_Q, W_V, W_O [D, D], and all are to be invertible. The heads of real models are
   D × D/H: W_Kᵀ·W_Q has rank D/H and is singular, so that with more than one head the assumption never holds. The
   output layer is D × D as well: as many pieces as the model is wide.
3. There is no residual connection, norm or causal mask. With a residual connection the step from Ẑ to
   W_2·W̄_2⁻¹·Z̄ (equation C.6) fails, and the theorem says nothing about the models of the paper.
4. Biases are replaced. LoRA as the paper trains it (E.1) has them frozen.
5. R adapts each head by itself. LoRA gives the heads of a layer one adapter of rank R together.
6. The condition suffices, but is not necessary: exchanging two heads changes no function and has a gap of up to D.
7. Nothing in it is about Softmax_1: any function of the scores is carried along. The theorem holds word for word for
   the ordinary softmax, and is no argument for one of the two.

Slips besides: "rank lower than R" means at most R, "W_2L ΔW_2L" lacks its plus, definition C.2 lacks the transposition
of W_K.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from sparq.attention.softmax import probabilities
from sparq.errors import UserError

_MATRICES = ("query", "key", "value", "output", "first", "second")


@dataclasses.dataclass(frozen=True)
class Block:
    """The weights of a block (definition C.2), or the adapters of one with the biases that replace its own.

    Attributes:
        query: W_Q of each head, [heads, D, D].
        key: W_K, the same.
        value: W_V, the same.
        output: W_O, the same.
        first: W_1 [D, D] of the feed-forward layer.
        second: W_2 [D, D].
        first_bias: b_1 [D].
        second_bias: b_2 [D].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    first: Tensor
    second: Tensor
    first_bias: Tensor
    second_bias: Tensor


@dataclasses.dataclass(frozen=True)
class Transformer:
    """The transformer of definition C.2; or the adapters of one.

    Attributes:
        blocks: from the first to the last.
        head: W_o [D, D], the output layer.
    """

    blocks: tuple[Block, ...]
    head: Tensor

    def __call__(self, x: Tensor, sink: str = "max") -> Tensor:
        """Compute TF_θ(X): [D, N] → [D, N], columns of probabilities (`sparq.attention.softmax` has the sinks)."""
        for block in self.blocks:
            scores = x.T @ block.key.mT @ block.query @ x  # [heads, keys, queries]
            attended = (block.output @ block.value @ x @ _columns(scores, sink)).sum(0)
            hidden = torch.relu(block.first @ attended + block.first_bias.unsqueeze(1))
            x = block.second @ hidden + block.second_bias.unsqueeze(1)
        return _columns((self.head @ x).unsqueeze(0), sink)[0]

    def adapted(self, adapters: Transformer) -> Transformer:
        """Add adapters to the matrices; the biases are theirs."""
        blocks = tuple(
            dataclasses.replace(added, **{name: getattr(own, name) + getattr(added, name) for name in _MATRICES})
            for own, added in zip(self.blocks, adapters.blocks, strict=True)
        )
        return Transformer(blocks, self.head + adapters.head)


def _columns(scores: Tensor, sink: str) -> Tensor:
    return probabilities(scores.mT.unsqueeze(0), sink)[0].mT


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A product of two frozen matrices, and what it has to become."""

    left: Tensor
    right: Tensor
    target: Tensor

    @property
    def error(self) -> Tensor:
        return self.target - self.left @ self.right


def adapt_product(
    left: Tensor, right: Tensor, target: Tensor, rank: int, where: str = "product"
) -> tuple[Tensor, Tensor]:
    """Bring (left + ΔL)·(right + ΔR) as near to a target as adapters of a rank can (lemma C.1 for two factors).

    ΔR makes the part E_1 of the error that its R largest singular values have, ΔR = left⁻¹·E_1, and ΔL the part E_2 of
    the next R, through the right factor as it now is: ΔL = E_2·(right + ΔR)⁻¹. What is left is σ_{2R+1} of the error in
    the 2-norm, the least possible, because the product cannot change by a matrix of more than rank 2R.

    Args:
        left: [D, D].
        right: [D, D].
        target: [D, D].
        rank: R, of each adapter.
        where: what the product is, for the error.

    Returns:
        ΔL and ΔR, [D, D], of at most that rank.

    Raises:
        UserError: a matrix is singular that must not be (assumption C.1).
    """
    u, s, v = torch.linalg.svd(target - left @ right)
    count = int((s > _noise(s, target)).sum())
    large, small = slice(min(rank, count)), slice(rank, min(2 * rank, count))
    delta_right = torch.linalg.solve(_regular(left, where), u[:, large] * s[large] @ v[large])
    middle = _regular(right + delta_right, where)
    return torch.linalg.solve(middle.mT, (u[:, small] * s[small] @ v[small]).mT).mT, delta_right


def _noise(values: Tensor, reference: Tensor) -> float:
    """Singular values up to this are rounding errors of computing with matrices as large as the reference."""
    return float(max(values.max(), torch.linalg.matrix_norm(reference, 2))) * 1e-10


def _regular(matrix: Tensor, where: str) -> Tensor:
    values = torch.linalg.svdvals(matrix)
    if values[-1] <= 1e-10 * values[0]:
        raise UserError(f"{where}: the matrices are singular (expected that assumption C.1 holds)")
    return matrix


def _carried(frozen: Transformer, target: Transformer, index: int) -> tuple[Tensor, Tensor]:
    """W_{2,l−1} of both, frozen first; the identity in front of the first block."""
    if index == 0:
        identity = torch.eye(len(frozen.head), dtype=frozen.head.dtype)
        return identity, identity
    return frozen.blocks[index - 1].second, target.blocks[index - 1].second


def _pairs(frozen: Transformer, target: Transformer, index: int, head: int) -> dict[str, _Pair]:
    """The two products of a head that have to match (the proof's conditions), keys·queries and outputs·values."""
    own, wanted = frozen.blocks[index], target.blocks[index]
    before, before_wanted = _carried(frozen, target, index)
    where = f"block {index + 1}, head {head + 1}"
    carry = torch.linalg.solve(_regular(before, where).mT, before_wanted.mT).mT  # W̄_2·W_2⁻¹
    scores = carry.mT @ wanted.key[head].mT @ wanted.query[head] @ carry
    values = wanted.first @ wanted.output[head] @ wanted.value[head] @ carry
    return {
        "scores": _Pair(own.key[head].mT, own.query[head], scores),
        "values": _Pair(own.output[head], own.value[head], torch.linalg.solve(_regular(own.first, where), values)),
    }


def _last(frozen: Transformer, target: Transformer) -> _Pair:
    return _Pair(frozen.head, frozen.blocks[-1].second, target.head @ target.blocks[-1].second)


def gaps(frozen: Transformer, target: Transformer) -> list[int]:
    """Measure the functionality gaps G_1 … G_{L+1} of theorem C.1.

    The theorem has W_1 and W_2 multiplied on both sides of the differences whose rank is taken; as they are invertible,
    the ranks are those of the errors that the construction starts from.

    Raises:
        UserError: a matrix is singular (assumption C.1).
    """

    def rank(pair: _Pair) -> int:
        values = torch.linalg.svdvals(pair.error)
        return int((values > _noise(values, pair.target)).sum())

    inside = [
        max(rank(pair) for head in range(len(block.key)) for pair in _pairs(frozen, target, index, head).values())
        for index, block in enumerate(frozen.blocks)
    ]
    return [*inside, rank(_last(frozen, target))]


def sufficient_rank(frozen: Transformer, target: Transformer) -> int:
    """Give the R of theorem C.1: max ⌈G_i / 2⌉."""
    return max((gap + 1) // 2 for gap in gaps(frozen, target))


def adapters(frozen: Transformer, target: Transformer, rank: int) -> Transformer:
    """Make the adapters of theorem C.1.

    Args:
        frozen: the pretrained model.
        target: what it shall compute; of the same shape.
        rank: R. From `sufficient_rank` on the adapted model is the target; below it each product is as near as lemma
            C.1 says, and the model is not the target.

    Returns:
        Adapters of at most that rank, zero on every W_1 and on W_2 but the last; with the biases that go with them.
        ``frozen.adapted(...)`` puts them in.

    Raises:
        UserError: a matrix is singular that must not be (assumption C.1).
    """
    blocks = []
    for index, (own, wanted) in enumerate(zip(frozen.blocks, target.blocks, strict=True)):
        made: dict[str, list[Tensor]] = {"query": [], "key": [], "value": [], "output": []}
        for head in range(len(own.key)):
            for name, (left, right) in {"scores": ("key", "query"), "values": ("output", "value")}.items():
                pair = _pairs(frozen, target, index, head)[name]
                where = f"block {index + 1}, head {head + 1}, {name}"
                delta_left, delta_right = adapt_product(pair.left, pair.right, pair.target, rank, where)
                made[left].append(delta_left.mT if left == "key" else delta_left)
                made[right].append(delta_right)
        zero = torch.zeros_like(own.first)
        # b̂_2 = W_2·W̄_2⁻¹·b̄_2, so that what leaves the block is what the target's does, carried over.
        bias = own.second @ torch.linalg.solve(wanted.second, wanted.second_bias)
        stacked: dict[str, Any] = {name: torch.stack(each) for name, each in made.items()}
        blocks.append(Block(**stacked, first=zero, second=zero, first_bias=wanted.first_bias, second_bias=bias))
    pair = _last(frozen, target)
    head_delta, second = adapt_product(pair.left, pair.right, pair.target, rank, "output layer")
    bias = torch.linalg.solve(frozen.head + head_delta, target.head @ target.blocks[-1].second_bias)
    blocks[-1] = dataclasses.replace(blocks[-1], second=second, second_bias=bias)
    return Transformer(tuple(blocks), head_delta)
