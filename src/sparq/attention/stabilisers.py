"""The paper's stabilisers (Tables 4 and 7) as their formulas stand: which of them diverge in low precision, and why.

Table 4 puts L1 normalisation, max-shift and mean-centring in front of softmax_1 and reports that every one but
max-shift ended in NaN losses; Table 7 puts max-shift in front of the ordinary softmax. Here each is written as one
would take it down from the paper, every step in one precision and without the shift that ``softmax.py`` computes with,
and compared with that file in float64. Every step is noted, so that the first that goes wrong can be named.

What hides a position matters as much as the scores: a softmax is given −inf or the smallest finite number there, and a
norm or a mean that does not leave these out is lost, whatever the scores are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from sparq.attention.softmax import probabilities

KEYS = 65  # in a row; every second one is hidden where some are, so that the extremes are always seen
MAGNITUDES = (1.0, 10.0, 12.0, 50.0, 80.0, 90.0, 100.0, 1e3, 6e4, 1e5)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MASKS = ("nothing", "-inf", "finfo.min")
# Share of the magnitude at which a row of scores begins and ends.
PATTERNS = {"both signs": (-1.0, 1.0), "positive": (0.9, 1.0), "negative": (-1.0, -0.9)}
ZEROS = "zeros"
WRONG = 0.05  # so much attention in the wrong place is not a matter of rounding


class Note(Protocol):
    """Takes down an intermediate result under its name and gives it back; a divisor is what is divided by."""

    def __call__(self, name: str, value: Tensor, *, divisor: bool = False) -> Tensor:
        """[..., keys] or [..., 1], the same back."""
        ...


Formula = Callable[[Tensor, Note], Tensor]


@dataclasses.dataclass(frozen=True)
class Stabiliser:
    """One row of Table 4 or 7.

    Attributes:
        table: where the paper has it.
        formula: scores [..., keys] to probabilities.
        sink: what ``softmax.probabilities`` calls the same function.
    """

    table: int
    formula: Formula
    sink: str


def _softmax_one(scores: Tensor, note: Note) -> Tensor:
    weights = note("exp", torch.exp(scores))
    return weights / note("1 + Σ exp", 1 + weights.sum(-1, keepdim=True), divisor=True)


def _softmax(scores: Tensor, note: Note) -> Tensor:
    weights = note("exp", torch.exp(scores))
    return weights / note("Σ exp", weights.sum(-1, keepdim=True), divisor=True)


def _outeffhop(scores: Tensor, note: Note) -> Tensor:
    """Give softmax_1 as OutEffHop computes it: everything is divided by exp(max S), the 1 as well."""
    largest = note("max S", scores.amax(-1, keepdim=True))
    weights = note("exp(S − max S)", torch.exp(note("S − max S", scores - largest)))
    one = note("exp(−max S)", torch.exp(-largest))
    return weights / note("exp(−max S) + Σ exp", weights.sum(-1, keepdim=True) + one, divisor=True)


def _l1(scores: Tensor, note: Note) -> Tensor:
    norm = note("‖S‖₁", scores.abs().sum(-1, keepdim=True), divisor=True)
    return _softmax_one(note("S / ‖S‖₁", scores / norm), note)


def _max_shift(scores: Tensor, note: Note) -> Tensor:
    return note("S − max S", scores - note("max S", scores.amax(-1, keepdim=True)))


def _mean_centring(scores: Tensor, note: Note) -> Tensor:
    return note("S − mean S", scores - note("mean S", scores.mean(-1, keepdim=True)))


STABILISERS = {
    "softmax_1": Stabiliser(4, _softmax_one, "zero"),
    "softmax_1 as in OutEffHop": Stabiliser(4, _outeffhop, "zero"),
    "L1, softmax_1": Stabiliser(4, _l1, "l1"),
    "max-shift, softmax_1": Stabiliser(4, lambda s, note: _softmax_one(_max_shift(s, note), note), "max"),
    "mean-centring, softmax_1": Stabiliser(4, lambda s, note: _softmax_one(_mean_centring(s, note), note), "mean"),
    "softmax": Stabiliser(7, _softmax, "none"),
    "max-shift, softmax": Stabiliser(7, lambda s, note: _softmax(_max_shift(s, note), note), "none"),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        kind: "output" (a probability is NaN or infinite), "gradient" (only a gradient is), "wrong" (all is finite, and
            the probabilities differ from the exact ones by more than ``WRONG`` in all), or "fine".
        cause: the first step that was infinite, not a number, or too small to divide by; empty where all is fine.
    """

    kind: str
    cause: str


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of scores through one stabiliser.

    Attributes:
        stabiliser: its name in ``STABILISERS``.
        dtype: the precision of every step.
        mask: what hidden positions hold, one of ``MASKS``; "nothing" hides none.
        pattern: where the scores lie, one of ``PATTERNS`` or "zeros".
        magnitude: the largest |score|.
        outcome: what became of it.
    """

    stabiliser: str
    dtype: torch.dtype
    mask: str
    pattern: str
    magnitude: float
    outcome: Outcome


def outcome(stabiliser: Stabiliser, scores: Tensor, mask: str) -> Outcome:
    """Compute a row forward and backward, and judge it against the definition in float64.

    Args:
        stabiliser: the formula.
        scores: [keys], in the precision to compute in.
        mask: one of ``MASKS``.
    """
    steps: list[tuple[str, Tensor, bool]] = []

    def note(name: str, value: Tensor, *, divisor: bool = False) -> Tensor:
        steps.append((name, value.detach(), divisor))
        return value

    fill = {"nothing": 0.0, "-inf": -math.inf, "finfo.min": torch.finfo(scores.dtype).min}[mask]
    hidden = torch.arange(len(scores)) % 2 == 1 if mask != "nothing" else torch.zeros(len(scores), dtype=torch.bool)
    leaf = scores.clone().requires_grad_()
    given = stabiliser.formula(leaf.masked_fill(hidden, fill), note)
    # Any smooth function of the probabilities will do; its own derivatives are between −1 and 1.
    (gradient,) = torch.autograd.grad((given * torch.linspace(-1, 1, len(scores)).to(given.dtype)).sum(), leaf)
    exact = probabilities(scores.double().masked_fill(hidden, -math.inf)[None, None, None], stabiliser.sink)[0, 0, 0]
    cause = _first_failure(
        [("S", scores.amax(0, keepdim=True), False), ("S", scores.amin(0, keepdim=True), False), *steps]
    )
    if not torch.isfinite(given).all():
        return Outcome("output", cause)
    if not torch.isfinite(gradient).all():
        return Outcome("gradient", cause)
    if not (given.double() - exact).abs().sum() <= WRONG:
        return Outcome("wrong", cause)
    return Outcome("fine", "")


def _first_failure(steps: list[tuple[str, Tensor, bool]]) -> str:
    for name, value, divisor in steps:
        # A hidden score may be −inf, the one number of a row may not.
        bad = value.isnan() | value.isposinf() | (value.isneginf() if value.shape[-1] == 1 else False)
        if bad.any():
            return f"{name} = {value[bad][0].item()}"
        if divisor and (value < torch.finfo(value.dtype).tiny).any():
            return f"{name} = {value.min().item():.3g}"  # dividing by it, forwards or backwards, overflows
    return ""


def rows(dtype: torch.dtype) -> Iterator[tuple[str, float, Tensor]]:
    """Give every row of scores that is tried: pattern, magnitude, scores [KEYS]."""
    yield ZEROS, 0.0, torch.zeros(KEYS, dtype=dtype)
    for pattern, (first, last) in PATTERNS.items():
        for magnitude in MAGNITUDES:
            scores = torch.linspace(first * magnitude, last * magnitude, KEYS, dtype=torch.float64)
            yield pattern, magnitude, scores.to(dtype)


def survey() -> list[Case]:
    """Try every stabiliser in every precision on every row and mask."""
    return [
        Case(name, dtype, mask, pattern, magnitude, outcome(stabiliser, scores, mask))
        for name, stabiliser in STABILISERS.items()
        for dtype in DTYPES
        for mask in MASKS
        for pattern, magnitude, scores in rows(dtype)
    ]
