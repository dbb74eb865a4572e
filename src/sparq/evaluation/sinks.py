"""Attention sinks and massive activations: how much the heads attend to the first token, and what grows out of it.

A head with nothing to do still has to put its attention somewhere, and models learn to put it on the first token, the
*attention sink* (Xiao et al. 2023), which a few channels of the residual stream mark by activations a thousand times
as large as the others, the *massive activations* (Sun et al. 2024). They come before the outliers that the paper
measures; a sink logit is meant to make both needless. The two can come apart, so both are measured.

The unit is the sentence, as in ``outliers.py``; padding is left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparq.attention.install import base_model
from sparq.attention.observe import Observation, observed
from sparq.errors import UserError
from sparq.quantization.blocks import architecture
from sparq.quantization.calibration import Batch, Watched

SINK_HEAD = 0.3  # first-token attention from which a head counts as a sink (Gu et al. 2025, their threshold)
# An activation is massive where |h| is above 100 and about a thousand times the median or more (Sun et al., section 2).
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0


@dataclasses.dataclass(frozen=True)
class LargestActivation:
    """The largest activation of the residual stream behind one layer, in all sequences.

    Attributes:
        layer: which, from 0.
        magnitude: |h|.
        ratio: to the median of |h| over the tokens and channels of its sequence.
        position: of its token in the sequence, from 0, padding left out.
        token: the id of that token.
        channel: which, from 0.
    """

    layer: int
    magnitude: float
    ratio: float
    position: int
    token: int
    channel: int


@dataclasses.dataclass(frozen=True)
class SinkReport:
    """Attention sinks and massive activations of a model on a set of sequences.

    Attributes:
        first_token_attention: the mean of ``by_head``, 0 to 1.
        sink_heads: the share of heads whose ``by_head`` is above 0.3.
        massive_activation_ratio: the largest of ``ratios``.
        by_head: [layers][heads], the attention that the first token receives from each later one: the mean over these,
            then over the sequences. The first token's own is left out, for it can see nothing else.
        unspent: [layers][heads], 1 − the sum of the probabilities, averaged likewise: what goes to the sink logit, or
            is clipped away. Gates multiply what a head gives and change neither of the two.
        ratios: by layer, max|h| over the median of |h|: the mean over the sequences.
        massive: by layer, how many activations of a sequence are massive (|h| > 100 and at least 1,000 medians).
        largest: by layer.
        sequences: how many were measured.
    """

    first_token_attention: float
    sink_heads: float
    massive_activation_ratio: float
    by_head: Sequence[Sequence[float]]
    unspent: Sequence[Sequence[float]]
    ratios: Sequence[float]
    massive: Sequence[float]
    largest: Sequence[LargestActivation]
    sequences: int


def first_token_attention(probabilities: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to the first token and attention unspent, in float64.

    Args:
        probabilities: [batch, heads, length, length].
        mask: [batch, length], true on real tokens, of which each sequence has at least two.

    Returns:
        Both [batch, heads]: means over all real tokens but the first.
    """
    first = mask.long().argmax(-1)
    later = mask.clone()
    later[torch.arange(len(mask)), first] = False
    weights = (later.double() / later.sum(-1, keepdim=True))[:, None]
    to_first = probabilities.take_along_dim(first[:, None, None, None], -1)[..., 0].double()
    spent = probabilities.double().sum(-1)
    return (to_first * weights).sum(-1), ((1 - spent) * weights).sum(-1)


def massive_activations(states: Tensor, ids: Tensor, layer: int) -> tuple[LargestActivation, int]:
    """The largest activation of one sequence behind a layer, and how many are massive.

    Args:
        states: [length, channels], the residual stream.
        ids: [length].
        layer: which.
    """
    sizes = states.abs().double()
    # The median of an even number of values is the lower of the two in the middle, as torch has it.
    magnitude, median = float(sizes.max()), float(sizes.median())
    ratio = magnitude / median if median else math.inf if magnitude else 0.0
    position, channel = divmod(int(sizes.argmax()), sizes.shape[-1])
    massive = int(((sizes > MASSIVE) & (sizes >= MASSIVE_RATIO * median)).sum())
    return LargestActivation(layer, magnitude, ratio, position, int(ids[position]), channel), massive


class _Tally:
    """Adds up what is found in the layers of a model."""

    def __init__(self, layers: int, watched: Watched) -> None:
        self.watched = watched
        self.ids = torch.empty(0, 0, dtype=torch.long)  # of the batch that runs now
        self.attention: list[Tensor | float] = [0.0] * layers  # each [2, heads]
        self.ratios, self.massive = [0.0] * layers, [0] * layers
        self.largest: dict[int, LargestActivation] = {}

    def see(self, seen: Observation) -> None:
        both = torch.stack(first_token_attention(seen.probabilities, self.watched.mask))
        self.attention[seen.layer] += both.sum(1).cpu()

    def note_ids(self, _module: nn.Module, _arguments: Any, keywords: dict[str, Any]) -> None:
        self.ids = keywords["input_ids"]
        if int(self.watched.mask.sum(-1).min()) < 2:
            raise UserError("attention sinks: a sequence has one token, and none behind it that could attend to it")

    def measure(self, layer: int, output: Tensor) -> None:
        for states, ids, real in zip(output, self.ids, self.watched.mask, strict=True):
            found, massive = massive_activations(states[real], ids[real], layer)
            self.ratios[layer] += found.ratio
            self.massive[layer] += massive
            # Not a comparison alone: what is not a number must not be passed over.
            if layer not in self.largest or not found.magnitude <= self.largest[layer].magnitude:
                self.largest[layer] = found


def sinks(model: PreTrainedModel, batches: Iterable[Batch]) -> SinkReport:
    """Measure attention sinks and massive activations; the probabilities are those of the model's own attention.

    Args:
        model: a causal language model; it runs in evaluation mode, and is then as it was.
        batches: "input_ids" and "attention_mask", both [batch, length].

    Raises:
        UserError: there is not one sequence, a sequence has only one token, or the architecture is not supported.
    """
    model = base_model(model)
    row = architecture(model)
    layers: Any = model.get_submodule(row.layers)
    watched = Watched(model)
    tally = _Tally(len(layers), watched)

    def watch(layer: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tally.measure(layer, output[0] if isinstance(output, tuple) else output)

        return layers[layer].register_forward_hook(hook)

    def handles() -> Iterable[Any]:
        yield model.register_forward_pre_hook(tally.note_ids, with_kwargs=True)
        yield from map(watch, range(len(layers)))

    with observed(model, tally.see):
        sequences = watched.run(handles(), batches)
    if not sequences:
        raise UserError("attention sinks: there is not one sequence")
    by_head, unspent = (torch.stack([torch.as_tensor(a)[i] for a in tally.attention]) / sequences for i in range(2))
    ratios = [total / sequences for total in tally.ratios]
    return SinkReport(
        first_token_attention=float(by_head.mean()),
        sink_heads=float((by_head > SINK_HEAD).double().mean()),
        massive_activation_ratio=max(ratios),
        by_head=by_head.tolist(),
        unspent=unspent.tolist(),
        ratios=ratios,
        massive=[total / sequences for total in tally.massive],
        largest=[tally.largest[layer] for layer in range(len(layers))],
        sequences=sequences,
    )
