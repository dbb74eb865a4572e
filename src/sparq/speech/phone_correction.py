"""What a small network adds to a linear classifier of phones.

A line through an encoder's features cannot tell a sound that a reader swallows from another, and three frames do not
say what stands around it. The network sees nine: each is projected to a few numbers, and a hidden layer reads those of
all nine. It begins with saying nothing, so that what it learns is a correction. Where the phones are timed, half of
what it is to say is what the classifier said: units of the voices that the classifier learnt from stay what they are,
and so do vocoders and language models of those units; it is other readers that come nearer to them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout, relu

REACH = 4
"""Frames on either side that it sees."""

_PROJECTED, _HIDDEN = 64, 128
_EPOCHS = 3
_FEWEST_STEPS = 400
_BATCH = 512
_RATE = 2e-3
_DROPOUT = (0.1, 0.2)  # of features and of the hidden layer
_SMOOTHING = 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
    """Two layers with ReLU between them, whose output is added to logits.

    Attributes:
        projection: float32 ``[projected, dimension]``, of every frame.
        projection_bias: float32 ``[projected]``.
        hidden: float32 ``[hidden, (2 * REACH + 1) * projected]``; the earliest frame's come first.
        hidden_bias: float32 ``[hidden]``.
        output: float32 ``[phones, hidden]``.
        output_bias: float32 ``[phones]``.
    """

    projection: np.ndarray
    projection_bias: np.ndarray
    hidden: np.ndarray
    hidden_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32 ``[frames, phones]`` of features ``[frames, dimension]``; their ends stand for the rest."""
        padded = np.pad(np.asarray(features, np.float32), ((REACH, REACH), (0, 0)), "edge")
        projected = np.maximum(padded @ self.projection.T + self.projection_bias, 0)
        hidden = np.tile(self.hidden_bias, (len(features), 1))
        for offset, part in enumerate(np.split(self.hidden, 2 * REACH + 1, axis=1)):
            hidden += projected[offset : offset + len(features)] @ part.T
        corrected: np.ndarray = np.maximum(hidden, 0) @ self.output.T + self.output_bias
        return corrected

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """An utterance that a correction learns from.

    Attributes:
        features: of an encoder, ``[frames, dimension]``, float16 or float32.
        logits: what the classifier says, float32 ``[frames, phones]``.
        labels: the class of each frame, int64; -1 where it is not known.
        timed: whether that is told by the voice, not found by aligning.
    """

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    timed: bool


def train_correction(utterances: Sequence[Labelled], seed: int = 0) -> Correction:
    """Train a correction (AdamW, learning rate falling to 0); its matrices are rounded to half precision.

    Args:
        utterances: held in memory together.
        seed: of initial weights, dropout and order.
    """
    generator = torch.Generator().manual_seed(seed)
    edges = ((REACH, REACH), (0, 0))
    frames = torch.from_numpy(np.concatenate([np.pad(its.features, edges, "edge") for its in utterances]))
    said = torch.from_numpy(np.concatenate([np.pad(its.logits, edges) for its in utterances]))
    labels = torch.from_numpy(np.concatenate([np.pad(its.labels, REACH, constant_values=-1) for its in utterances]))
    timed = torch.from_numpy(np.concatenate([np.full(len(its.labels) + 2 * REACH, its.timed) for its in utterances]))
    middles = torch.nonzero(labels >= 0)[:, 0]
    sample = frames[middles[:: max(1, len(middles) // 50_000)]].float()
    mean, deviation = sample.mean(0), sample.std(0) + 1e-5
    parameters = _initial(frames.shape[1], said.shape[1], generator)
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.02)
    steps_an_epoch = -(-len(middles) // _BATCH)
    epochs = max(_EPOCHS, -(-_FEWEST_STEPS // steps_an_epoch))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * steps_an_epoch)
    offsets = torch.arange(-REACH, REACH + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        for _ in range(epochs):
            for places in torch.randperm(len(middles), generator=generator).split(_BATCH):
                chosen = middles[places]
                seen = (frames[chosen[:, None] + offsets].float() - mean) / deviation
                logits = said[chosen] + _forward(seen, parameters)
                loss = _loss(logits, said[chosen], labels[chosen], timed[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        projection, bias, hidden, hidden_bias, output, output_bias = parameters
        halves = (projection / deviation).half().float()
        weights = (halves, bias - halves @ mean, hidden.half().float(), hidden_bias, output.half().float(), output_bias)
    return Correction(*(weight.detach().numpy() for weight in weights))


def _initial(dimension: int, phones: int, generator: torch.Generator) -> list[nn.Parameter]:
    """Uniform weights, but zeros for the output: a correction begins with saying nothing."""

    def uniform(rows: int, columns: int) -> nn.Parameter:
        return nn.Parameter((torch.rand(rows, columns, generator=generator) - 0.5) * 2 / columns**0.5)

    seen = (2 * REACH + 1) * _PROJECTED
    return [
        uniform(_PROJECTED, dimension),
        nn.Parameter(torch.zeros(_PROJECTED)),
        uniform(_HIDDEN, seen),
        nn.Parameter(torch.zeros(_HIDDEN)),
        nn.Parameter(torch.zeros(phones, _HIDDEN)),
        nn.Parameter(torch.zeros(phones)),
    ]


def _forward(seen: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ``[frames, phones]`` of standardised ``[frames, 2 * REACH + 1, dimension]``, with dropout."""
    projection, projection_bias, hidden, hidden_bias, output, output_bias = parameters
    projected = relu(dropout(seen, _DROPOUT[0]) @ projection.T + projection_bias).flatten(1)
    return dropout(relu(projected @ hidden.T + hidden_bias), _DROPOUT[1]) @ output.T + output_bias


def _loss(logits: torch.Tensor, said: torch.Tensor, labels: torch.Tensor, timed: torch.Tensor) -> torch.Tensor:
    known = cross_entropy(logits, labels, label_smoothing=_SMOOTHING, reduction="none")
    before = cross_entropy(logits, said.softmax(1), reduction="none")
    return torch.where(timed, (known + before) / 2, known).mean()
