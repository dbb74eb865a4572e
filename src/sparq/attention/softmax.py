"""Outlier-free softmax, as the paper writes it: the definitions that everything fused is tested against.

Every variant is a softmax over the scores of a row and one more logit, the *sink logit* σ, whose value is dropped:

    p_j = exp(s_j) / (Σ_i exp(s_i) + exp(σ))

=========  ============================  ==================================================================
sink       σ of a row                    source
=========  ============================  ==================================================================
none       −∞                            the ordinary softmax
zero       0                             softmax_1 (Miller 2023; OutEffHop, Hu et al. 2024)
max        the row's largest score       SpARQ, equation 3.2 read literally: softmax_1(S − max S)
mean       the row's mean score          softmax_1(S − mean S)
learned    one parameter per head        gpt-oss (2025)
l1         0, on scores S / ‖S‖₁         the L1 stabiliser that the paper compares with; has no fused form
clipped    −∞                            clipped softmax (Bondarenko et al. 2023), the paper's table G.1: see
                                         :func:`clipped`; has no fused form
=========  ============================  ==================================================================

The max sink gives exactly ``softmax(S) / (1 + p_max)``: a row keeps between 1/2 and n/(n+1) of its attention, so it
can halve a head but not silence it; the zero sink can silence it. Hidden positions count nowhere, neither in a
maximum nor in a mean nor in a norm, and a row that may see nothing attends to nothing: its probabilities are zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FUSED_SINKS = ("none", "zero", "max", "mean", "learned")
SINKS = (*FUSED_SINKS, "l1", "clipped")
DETACHABLE_SINKS = ("max", "mean")

# An additive mask hides a position by any value this low (finfo.min of every dtype, the −1e4 of older code, −inf):
# added to a score it leaves nothing of its probability, but it would drown a mean and an L1 norm.
HIDDEN = -1e4


def check_causal(query: Tensor, key: Tensor) -> None:
    """Refuse causal attention over unequal lengths, where "later" could mean two things."""
    if query.shape[-2] != key.shape[-2]:
        lengths = f"{query.shape[-2]} and {key.shape[-2]}"
        raise ValueError(f"causal attention needs as many queries as keys, got {lengths}")


def additive_mask(mask: Tensor | None, query: Tensor, key: Tensor, *, causal: bool) -> Tensor | None:
    """Bring masks of every kind to one: numbers added to the scores, −inf where a position is hidden.

    Args:
        mask: [batch or 1, heads or 1, q_length or 1, k_length]; True where a position may be seen, or numbers to
            add, of which those up to −1e4 hide. None hides nothing.
        query: [batch, heads, q_length, head_dim]; gives the dtype.
        key: [batch, kv_heads, k_length, head_dim].
        causal: also hide what comes later; needs q_length = k_length.

    Returns:
        The mask in the query's dtype, or None where nothing is hidden.

    Raises:
        ValueError: causal with q_length ≠ k_length, see :func:`check_causal`.
    """
    if causal:
        check_causal(query, key)
    additive = None
    if mask is not None:
        hidden = ~mask if mask.dtype == torch.bool else mask <= HIDDEN
        numbers = torch.zeros_like(mask, dtype=query.dtype) if mask.dtype == torch.bool else mask.to(query.dtype)
        additive = numbers.masked_fill(hidden, -math.inf)
        additive = additive.expand(*mask.shape[:-2], query.shape[-2], key.shape[-2])
    if causal:
        later = query.new_full((query.shape[-2], key.shape[-2]), -math.inf).triu(1)
        additive = later if additive is None else additive + later
    return additive


def sink_logit(scores: Tensor, sink: str, learned: Tensor | None = None, *, detach: bool = False) -> Tensor:
    """Give σ of every row.

    Args:
        scores: [batch, heads, q_length, k_length], −inf where hidden.
        sink: "none", "zero", "max", "mean" or "learned".
        learned: [heads], for the learned sink.
        detach: let no gradient pass through the row's maximum or mean.

    Returns:
        [batch, heads, q_length, 1], or something that broadcasts to it.
    """
    if sink == "none":
        return scores.new_full((), -math.inf)
    if sink == "zero":
        return scores.new_zeros(())
    if sink == "learned":
        assert learned is not None, "the learned sink needs its logits"
        return learned.to(scores.dtype).view(-1, 1, 1)
    if sink == "max":
        # Not amax, which shares the gradient out among equals: one of them takes it, as in the fused form.
        logit = scores.max(dim=-1, keepdim=True).values
    elif sink == "mean":
        seen = scores > -math.inf
        logit = scores.masked_fill(~seen, 0).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)
    else:
        raise ValueError(f"no sink logit is called {sink!r}")
    return logit.detach() if detach else logit


def clipped(weights: Tensor, gamma: float, zeta: float) -> Tensor:
    """Stretch the probabilities of an ordinary softmax and clip them: clip((ζ − γ)·p + γ, 0, 1).

    A head can give exactly zero without a logit that grows for it, and what is clipped has no gradient
    (Bondarenko et al. 2023, "Quantizable Transformers", section 4.1).

    Args:
        weights: probabilities, any shape.
        gamma: γ, at most 0; probabilities up to −γ/(ζ − γ) become zero, so hidden positions stay zero.
        zeta: ζ, at least 1; probabilities from (1 − γ)/(ζ − γ) become one.

    Returns:
        The shape of ``weights``. Rows need not sum to 1; with ζ > 1 not even to at most 1.
    """
    return torch.clamp((zeta - gamma) * weights + gamma, 0, 1)


def probabilities(
    scores: Tensor,
    sink: str,
    learned: Tensor | None = None,
    *,
    detach: bool = False,
    gamma: float = 0.0,
    zeta: float = 1.0,
) -> Tensor:
    """Turn scores into attention probabilities that sum to at most 1 (equation 3.2 and its family).

    Args:
        scores: [batch, heads, q_length, k_length], −inf where hidden.
        sink: one of ``SINKS``.
        learned: [heads], for the learned sink.
        detach: let no gradient pass through the row's maximum or mean.
        gamma: γ of the clipped softmax.
        zeta: ζ of the clipped softmax.

    Returns:
        The shape of ``scores``. A row that is hidden altogether is zero.
    """
    if sink == "clipped":
        return clipped(probabilities(scores, "none"), gamma, zeta)
    if sink == "l1":
        hidden = scores == -math.inf
        seen = scores.masked_fill(hidden, 0)
        norm = seen.abs().sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
        scores, sink = (seen / norm).masked_fill(hidden, -math.inf), "zero"
    logit = sink_logit(scores, sink, learned, detach=detach)
    largest = scores.detach().amax(-1, keepdim=True)
    blind = largest == -math.inf
    # Whatever is subtracted from scores and σ alike cancels. With the larger of the two no exponential overflows,
    # and one of them is 1; OutEffHop's max S alone divides by zero in the gradient of rows around −100.
    shift = torch.maximum(largest, logit.detach()).masked_fill(blind, 0)
    weights = torch.exp(scores - shift)
    # A blind row's weights are 0, whatever they are divided by.
    return weights / (weights.sum(-1, keepdim=True) + torch.exp(logit - shift)).masked_fill(blind, 1)


def repeat_heads(states: Tensor, query: Tensor) -> Tensor:
    """Repeat grouped key or value heads [batch, kv_heads, ...] until every query head has its own."""
    return states.repeat_interleave(query.shape[1] // states.shape[1], dim=1)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: str,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    learned: Tensor | None = None,
    detach: bool = False,
    gamma: float = 0.0,
    zeta: float = 1.0,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend by the definition, with every probability in memory.

    Args:
        query: [batch, heads, q_length, head_dim].
        key: [batch, kv_heads, k_length, head_dim], where heads is a multiple of kv_heads.
        value: [batch, kv_heads, k_length, head_dim].
        sink: one of ``SINKS``.
        mask: [batch or 1, heads or 1, q_length or 1, k_length], booleans (True may be seen) or numbers to add.
        causal: hide later positions; needs q_length = k_length.
        scale: factor of the scores; 1/√head_dim if None.
        learned: [heads], for the learned sink.
        detach: let no gradient pass through the row's maximum or mean.
        gamma: γ of the clipped softmax.
        zeta: ζ of the clipped softmax.
        dropout: the share of probabilities dropped.

    Returns:
        Output [batch, heads, q_length, head_dim] and probabilities [batch, heads, q_length, k_length], in the
        query's dtype; scores and probabilities are computed in at least float32.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    precision = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        scores = query.to(precision) @ repeat_heads(key, query).to(precision).mT * scale
        hiding = additive_mask(mask, query, key, causal=causal)
        if hiding is not None:
            scores = scores + hiding
        weights = probabilities(scores, sink, learned, detach=detach, gamma=gamma, zeta=zeta)
        weights = torch.nn.functional.dropout(weights, dropout)
        output = weights @ repeat_heads(value, query).to(precision)
    return output.to(query.dtype), weights.to(query.dtype)
