"""Theorem C.1 (`sparq.paper.theory`) at work on random models, to be looked at and to be tested with."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sparq.paper.theory import Block, Transformer, adapters, gaps, sufficient_rank


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """What came of one pair of models.

    Attributes:
        gaps: G_1 … G_{L+1}.
        sufficient: the theorem's R.
        deviations: R → largest |f(X) − f̄(X)|, a difference of probabilities, for some R below and above.
    """

    gaps: list[int]
    sufficient: int
    deviations: dict[int, float]


def demonstrate(width: int = 12, heads: int = 2, blocks: int = 2, gap: int = 7, seed: int = 0) -> Demonstration:
    """Adapt a random model to another one with adapters of rising rank, in float64.

    Args:
        width: D.
        heads: in each block.
        blocks: L.
        gap: of every block and of the output layer; at most the width.
        seed: of models and input.
    """
    frozen, target = random_pair(width, heads, blocks, gap, seed)
    x = torch.randn(width, 2 * width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wanted, sufficient = target(x), sufficient_rank(frozen, target)
    deviations = {
        rank: float((frozen.adapted(adapters(frozen, target, rank))(x) - wanted).abs().max())
        for rank in range(1, min(sufficient + 2, width + 1))
    }
    return Demonstration(gaps(frozen, target), sufficient, deviations)


def random_pair(width: int, heads: int, blocks: int, gap: int, seed: int) -> tuple[Transformer, Transformer]:
    """Make a frozen and a target model, different in every weight, all of whose functionality gaps are ``gap``."""
    generator = torch.Generator().manual_seed(seed)

    def directions(count: int) -> Tensor:
        return torch.linalg.qr(torch.randn(width, count, generator=generator, dtype=torch.float64)).Q

    def strengths(count: int) -> Tensor:
        return 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)

    def regular() -> Tensor:
        return directions(width) * strengths(width)

    def difference() -> Tensor:
        return directions(gap) * strengths(gap) @ directions(gap).T

    def bias() -> Tensor:
        return torch.randn(width, generator=generator, dtype=torch.float64)

    def several() -> Tensor:
        return torch.stack([regular() for _ in range(heads)])

    def block() -> Block:
        return Block(several(), several(), several(), several(), regular(), regular(), bias(), bias())

    frozen = Transformer(tuple(block() for _ in range(blocks)), regular())
    made: list[Block] = []
    carry = torch.eye(width, dtype=torch.float64)  # W̄_2·W_2⁻¹ of the block before
    for own in frozen.blocks:
        wanted = block()
        undo = torch.linalg.inv(carry)
        scores = torch.stack([k.T @ q + difference() for k, q in zip(own.key, own.query, strict=True)])
        values = torch.stack([o @ v + difference() for o, v in zip(own.output, own.value, strict=True)])
        key = (undo.T @ scores @ undo @ torch.linalg.inv(wanted.query)).mT
        value = torch.linalg.inv(wanted.first @ wanted.output) @ own.first @ values @ undo
        made.append(dataclasses.replace(wanted, key=key, value=value))
        carry = wanted.second @ torch.linalg.inv(own.second)
    head = regular()
    last = torch.linalg.inv(head) @ (frozen.head @ frozen.blocks[-1].second + difference())
    made[-1] = dataclasses.replace(made[-1], second=last)
    return frozen, Transformer(tuple(made), head)
