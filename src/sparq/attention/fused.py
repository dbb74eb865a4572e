"""Outlier-free attention on fused kernels: the definitions of ``softmax.py`` without their probabilities in memory.

A fused kernel returns the ordinary attention and the log-sum-exp of every row. That is all a sink needs:

    output = softmax(S)·V · exp(lse − total),   total = log(exp(lse) + exp(σ))

and the kernel's own backward pass, given this output and ``total`` in place of its own, computes the exact gradients
for a constant σ. What σ itself depends on receives

    dσ = −⟨d output, output⟩ · exp(σ − total)

so σ is made of ordinary differentiable operations: the max sink is the product of a query with the key of its largest
score, found tile by tile; the mean sink is its product with the mean of the keys it sees.

The kernels are in ``kernels.py``; where none of them fits, the plain definition computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, scaled_dot_product_attention

from sparq.attention import softmax
from sparq.attention.kernels import EfficientCuda, Kernel, Rows, choose

# Scores held at once while the largest are searched for. On a CPU a tile of 64 queries is fastest (it stays in the
# cache); a GPU needs larger ones to be kept busy. Both shrink so that long sequences need no quadratic memory.
_TILE_ROWS = {"cpu": 64, "cuda": 1024}
_TILE_SCORES = {"cpu": 2**22, "cuda": 2**27}


class _SinkAttention(torch.autograd.Function):
    """Attention with the sink logit σ as an input, on one of the kernels."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, sigma: Tensor, kernel: Kernel) -> Tensor:
        rows = kernel.forward(query, key, value)
        total = torch.logaddexp(rows.lse, sigma)
        output = rows.output.mul_(torch.exp(rows.lse - total)[..., None])
        ctx.save_for_backward(query, key, value, sigma, output, total)
        ctx.kernel, ctx.extras = kernel, rows.extras
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sigma, output, total = ctx.saved_tensors
        grad = grad.contiguous()
        grads = ctx.kernel.backward(grad, query, key, value, Rows(output, total, ctx.extras))
        grad_sigma = None
        if ctx.needs_input_grad[3]:
            grad_sigma = -_row_products(grad, output) * torch.exp(sigma - total)
        return *grads, grad_sigma, None


@torch.no_grad()
def row_argmax(query: Tensor, key: Tensor, mask: Tensor | None, *, causal: bool, scale: float) -> Tensor:
    """Find the key of the largest score of every row, tile by tile.

    Args:
        query: [batch, heads, q_length, head_dim].
        key: [batch, kv_heads, k_length, head_dim].
        mask: additive, [batch or 1, heads or 1, q_length, k_length].
        causal: hide later positions (never together with a mask).
        scale: factor of the scores, positive.

    Returns:
        Indices of keys [batch, heads, q_length].
    """
    tiles = _tiles(query, key, mask, causal=causal, scale=scale)
    return torch.cat([scores.argmax(-1) for scores in tiles], dim=2)


def _tiles(query: Tensor, key: Tensor, mask: Tensor | None, *, causal: bool, scale: float) -> Iterator[Tensor]:
    """Give the scores of some rows after others, [batch, heads, rows, k_length or those that a causal row sees].

    Without a mask they are not scaled yet: the largest is the same, and there are far fewer of these.
    """
    batch, heads, q_length, width = query.shape
    kv_heads, k_length = key.shape[1], key.shape[2]
    group = heads // kv_heads
    device = query.device.type
    # Half-precision scores would put equals where there are none: their products are summed in float32.
    widen = query.dtype in (torch.float16, torch.bfloat16)
    on_tensor_cores = widen and device == "cuda"
    if widen and not on_tensor_cores:
        query, key = query.float(), key.float()
    query = query.reshape(batch * kv_heads, group, q_length, width)
    keys = key.reshape(batch * kv_heads, k_length, width).mT
    rows = min(_TILE_ROWS[device], max(1, _TILE_SCORES[device] // (batch * heads * k_length)))
    later = torch.full((rows, rows), -math.inf, device=query.device, dtype=torch.float32).triu(1) if causal else None
    for start in range(0, q_length, rows):
        stop = min(start + rows, q_length)
        tile = query[:, :, start:stop].reshape(batch * kv_heads, -1, width)
        seen = keys[..., : stop if causal else k_length]
        scores = torch.bmm(tile, seen, torch.float32) if on_tensor_cores else torch.bmm(tile, seen)
        scores = scores.view(batch, heads, stop - start, -1)
        if later is not None:
            scores[..., start:] += later[: stop - start, : stop - start]
        if mask is not None:
            scores.mul_(scale).add_(mask[..., start:stop, :])
        yield scores


def _row_max(query: Tensor, key: Tensor, mask: Tensor | None, *, causal: bool, scale: float) -> Tensor:
    """Give the largest score of every row [batch, heads, q_length], with its gradient."""
    if not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)):
        tiles = _tiles(query, key, mask, causal=causal, scale=scale)
        largest = torch.cat([scores.amax(-1) for scores in tiles], dim=2)
        return largest * scale if mask is None else largest
    batch, heads, _, width = query.shape
    kv_heads, k_length = key.shape[1], key.shape[2]
    best = row_argmax(query, key, mask, causal=causal, scale=scale)
    # One table of all keys: looking rows up in it has a far quicker gradient than gathering single numbers.
    head = torch.arange(heads, device=best.device) // (heads // kv_heads)
    first = (torch.arange(batch, device=best.device)[:, None] * kv_heads + head) * k_length
    # On a CPU that gradient is a sum in the keys' precision, and a first key is the largest of very many rows.
    table = key.to(torch.promote_types(key.dtype, torch.float32)) if key.device.type == "cpu" else key
    largest = embedding(best + first[..., None], table.reshape(-1, width))
    logit = _row_products(query, largest) * scale
    if mask is not None:
        reach = mask.expand(batch, heads, -1, -1)
        logit = logit + reach.gather(-1, best[..., None])[..., 0]
    return logit


def _row_mean(query: Tensor, key: Tensor, mask: Tensor | None, *, causal: bool, scale: float) -> Tensor:
    """Give the mean score of what every row sees [batch, heads, q_length], with its gradient."""
    key = key.to(torch.promote_types(key.dtype, torch.float32))
    if mask is None and causal:
        count = torch.arange(1, key.shape[2] + 1, device=key.device, dtype=key.dtype)
        return _row_products(query, softmax.repeat_heads(key.cumsum(2) / count[:, None], query)) * scale
    if mask is None:
        return _row_products(query, softmax.repeat_heads(key.mean(2, keepdim=True), query)) * scale
    mask = mask.to(key.dtype).expand(query.shape[0], -1, -1, -1)
    seen = mask > -math.inf
    share = seen.to(key.dtype) / seen.sum(-1, keepdim=True).clamp(min=1)
    if seen.shape[1] == 1:
        # One mask for all heads: their keys side by side, so that no head needs a copy of it.
        side_by_side = key.transpose(1, 2).flatten(2)
        means = (share[:, 0] @ side_by_side).unflatten(-1, (key.shape[1], key.shape[3])).transpose(1, 2)
        means = softmax.repeat_heads(means, query)
    else:
        means = share @ softmax.repeat_heads(key, query)
    offset = (mask.masked_fill(~seen, 0) * share).sum(-1)
    return _row_products(query, means) * scale + offset


def _row_products(query: Tensor, other: Tensor) -> Tensor:
    """Multiply every query with its own vector, in at least float32: [..., length, head_dim] → [..., length]."""
    precision = torch.promote_types(query.dtype, torch.float32)
    return (query.to(precision) * other.to(precision)).sum(-1)


def _sigma(
    query: Tensor, key: Tensor, mask: Tensor | None, sink: str, learned: Tensor | None, *, causal: bool, scale: float
) -> Tensor:
    """Give σ, [batch, heads, q_length] or what broadcasts to it, in at least float32."""
    precision = torch.promote_types(query.dtype, torch.float32)
    if sink == "zero":
        return query.new_zeros((), dtype=precision)
    if sink == "learned":
        assert learned is not None, "the learned sink needs its logits"
        return learned.to(precision)[:, None].expand(query.shape[:3])
    row = _row_max if sink == "max" else _row_mean
    return row(query, key, mask, causal=causal, scale=scale)


def fused_attention(
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
) -> Tensor:
    """Attend as :func:`sparq.attention.softmax.attention` does, without its probabilities in memory.

    Gradients are exact, through the sink logit too; there are no second derivatives. Under autocast everything is
    cast to its dtype, as PyTorch's own attention is. There is no dropout of probabilities.

    Args:
        query: [batch, heads, q_length, head_dim].
        key: [batch, kv_heads, k_length, head_dim], where heads is a multiple of kv_heads.
        value: [batch, kv_heads, k_length, head_dim].
        sink: one of ``FUSED_SINKS``.
        mask: [batch or 1, heads or 1, q_length or 1, k_length], booleans (True may be seen) or numbers to add.
        causal: hide later positions; needs q_length = k_length.
        scale: factor of the scores, positive; 1/√head_dim if None.
        learned: [heads], for the learned sink.
        detach: let no gradient pass through the row's maximum or mean.

    Returns:
        [batch, heads, q_length, head_dim].
    """
    assert sink in softmax.FUSED_SINKS, f"the {sink} sink has no fused form"
    device = query.device.type
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if torch.is_autocast_enabled(device):
        query, key, value = (states.to(torch.get_autocast_dtype(device)) for states in (query, key, value))
    if causal:
        softmax.check_causal(query, key)
    if mask is not None:
        mask, causal = softmax.additive_mask(mask, query, key, causal=causal), False
    with torch.autocast(device, enabled=False):
        if sink == "none":
            grouped = key.shape[1] != query.shape[1]
            return scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
            )
        kernel = choose(query, mask)
        if kernel is None:
            return softmax.attention(
                query, key, value, sink, mask=mask, causal=causal, scale=scale, learned=learned, detach=detach
            )[0]
        sigma = _sigma(query, key, mask, sink, learned, causal=causal, scale=scale)
        if detach and sink in softmax.DETACHABLE_SINKS:
            sigma = sigma.detach()
        if kernel is EfficientCuda:
            key, value = softmax.repeat_heads(key, query), softmax.repeat_heads(value, query)
        return _SinkAttention.apply(query, key, value, sigma, kernel(mask, causal, scale))
