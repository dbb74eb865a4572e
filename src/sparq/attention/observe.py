"""Attention looked at while a model runs: the probabilities of every head, by the plain definitions.

Fused kernels never have the probabilities in memory. For as long as one looks, the attention that a model has, of
whatever sink, clipped or gated, is computed by ``softmax.py`` in their place; afterwards the model is as it was.
"""

# ruff: noqa: SLF001 - transformers has no public name for the attention that a configuration asks for

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparq.attention.install import attend, attention_modules, installed, supported_model
from sparq.attention.settings import AttentionSettings
from sparq.attention.softmax import repeat_heads

_one_at_a_time = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Observation:
    """The attention of one layer in one forward pass.

    Attributes:
        layer: which, from 0.
        probabilities: [batch, heads, q_length, k_length]; rows sum to at most 1 (clipped with ζ > 1 aside).
        values: [batch, heads, k_length, head_dim], those of grouped heads repeated.
        weighted: [batch, heads, q_length, head_dim], probabilities times values, times the gate where heads have one:
            what each head gives.
    """

    layer: int
    probabilities: Tensor
    values: Tensor
    weighted: Tensor


See = Callable[[Observation], None]


def _observe(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    settings: AttentionSettings,
    layers: Mapping[int, int],
    see: See,
    thread: int,
    **keywords: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend as :func:`sparq.attention.install.attend` does, and show it to the thread that looks."""
    if threading.get_ident() != thread:
        return attend(module, query, key, value, attention_mask, settings=settings, **keywords)
    output, weights = attend(module, query, key, value, attention_mask, settings=settings, **keywords)
    assert weights is not None
    see(Observation(layers[id(module)], weights, repeat_heads(value, query), output.transpose(1, 2)))
    return output, weights


@contextlib.contextmanager
def observed(model: Any, see: See) -> Iterator[None]:
    """Show the attention of every layer, as it is computed, inside the block; the model is what it was after it.

    Args:
        model: a transformers causal LM of a supported architecture, or a PEFT model around one; with SpARQ's
            attention installed or with its own softmax. Run it without a cache, in evaluation mode.
        see: told of each layer in turn, in every forward pass.

    Raises:
        UserError: the architecture is not supported.
    """
    with _one_at_a_time:
        yield from _observed(model, see)


def _observed(model: Any, see: See) -> Iterator[None]:
    base = supported_model(model)
    settings = installed(base) or AttentionSettings("none")
    layers = {id(module): index for index, (_, module) in enumerate(attention_modules(base))}
    plain = dataclasses.replace(settings, implementation="plain")
    name = f"{plain.name}_observed"
    function = functools.partial(_observe, settings=plain, layers=layers, see=see, thread=threading.get_ident())
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)
    before = base.config._attn_implementation
    base.config._attn_implementation = name
    try:
        yield
    finally:
        base.config._attn_implementation = before
        # The name stays, without anyone who looks: another thread may have read it from the model just now.
        AttentionInterface.register(name, functools.partial(attend, settings=plain))
