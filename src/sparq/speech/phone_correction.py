"""What a network that hears what is around a sound adds to a linear classifier of phones.

Three frames do not say what stands around a phone, and a line through an encoder's features cannot tell a sound that a
reader swallows from another. The network sees half a second to either side: every frame is projected to a few numbers,
to which four blocks add (a depthwise convolution over time and two layers of each frame), and a last layer reads them.
Frames are hidden now and then while it learns, so that it learns which phones follow which. It begins with saying
nothing, so that what it learns is a correction; one that is there already goes on learning.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.nn.functional import cross_entropy, dropout, pad, relu
from torch.nn.utils.rnn import pad_sequence

KERNEL, DILATIONS = 9, (1, 1, 2, 2)  # of the convolution in each block
REACH = sum(dilation * (KERNEL // 2) for dilation in DILATIONS)
"""Frames on either side that it sees."""

_WIDTH, _HIDDEN = 128, 208
_EPOCHS = 3
_FEWEST_STEPS = 400
_WARMUP_STEPS = 100
_BATCH = 3000  # frames
_RATE = 2e-3
_DROPOUT = 0.1  # of features and of hidden layers
_HIDDEN_SPANS, _SPAN = 0.01, 3  # how many frames begin a hidden span, and its frames
_SMOOTHING = 0.05
_LARGEST_NORM = 1.0  # of a gradient
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
    """Weights of the network, float32, whose output is added to logits; its matrices fit in eight bits.

    Attributes:
        projection: ``[width, dimension]``, of every frame.
        projection_bias: ``[width]``.
        gains: ``[blocks, width]``, after each block's root-mean-square normalisation.
        filters: ``[blocks, width, KERNEL]``.
        expansion: ``[blocks, hidden, width]``; ReLU follows.
        expansion_bias: ``[blocks, hidden]``.
        contraction: ``[blocks, width, hidden]``.
        contraction_bias: ``[blocks, width]``.
        output: ``[phones, width]``, after another normalisation.
        output_bias: ``[phones]``.
    """

    projection: np.ndarray
    projection_bias: np.ndarray
    gains: np.ndarray
    filters: np.ndarray
    expansion: np.ndarray
    expansion_bias: np.ndarray
    contraction: np.ndarray
    contraction_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32 ``[frames, phones]`` of features ``[frames, dimension]``; beyond their ends is nothing."""
        weights = {name: torch.from_numpy(its) for name, its in self.arrays().items()}
        with torch.inference_mode():
            seen = torch.from_numpy(np.asarray(features, np.float32))[None]
            corrected: np.ndarray = _forward(seen, torch.ones(*seen.shape[:2], 1), weights)[0].numpy()
        return corrected

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def packed(self) -> dict[str, np.ndarray]:
        """Return what :meth:`unpack` makes this of: int8 matrices, the exponents of their rows, and vectors."""
        arrays = {}
        for name, its in self.arrays().items():
            if name in _MATRICES:
                arrays[name], arrays[name + _EXPONENTS] = _rounded(its)
            else:
                arrays[name] = its
        return arrays

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray]) -> Correction:
        """Make one of what :meth:`packed` gave.

        Raises:
            KeyError: something is missing, as it is in those of earlier versions.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = {*names, *(name + _EXPONENTS for name in _MATRICES)} - set(arrays)
        if missing:
            raise KeyError(f"no {min(missing)} in the correction; refine the codebook again")
        return cls(
            *(
                np.ldexp(its.astype(np.float32), arrays[name + _EXPONENTS][..., None]) if name in _MATRICES else its
                for name, its in ((name, arrays[name]) for name in names)
            )
        )


_MATRICES, _EXPONENTS = ("projection", "filters", "expansion", "contraction", "output"), ".exponents"


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """An utterance that a correction learns from.

    Attributes:
        features: of an encoder, ``[frames, dimension]``, float16 or float32.
        logits: what the linear classifier says, ``[frames, phones]``.
        labels: the class of each frame, int64; -1 where it is not known.
    """

    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


def train_correction(
    utterances: Sequence[Labelled], start: Correction | None = None, seed: int = 0, *, quiet: bool = True
) -> Correction:
    """Train a correction (AdamW, learning rate falling to 0); its matrices are rounded to eight bits a number.

    Args:
        utterances: held in memory together.
        start: the correction that goes on learning; None begins anew.
        seed: of initial weights, dropout and order.
        quiet: without a progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.from_numpy(np.concatenate([its.features[::3] for its in utterances[:: len(utterances) // 1000 + 1]]))
    mean, deviation = sample.float().mean(0), sample.float().std(0) + 1e-5
    if start is None:
        weights = _initial(sample.shape[1], utterances[0].logits.shape[1], generator)
    else:
        weights = {name: torch.from_numpy(its.copy()) for name, its in start.arrays().items()}
        weights["projection_bias"] += weights["projection"] @ mean
        weights["projection"] *= deviation
    for its in weights.values():
        its.requires_grad_()
    optimizer = torch.optim.AdamW(weights.values(), lr=_RATE, weight_decay=0.02)
    steps = max(_FEWEST_STEPS, _EPOCHS * sum(len(its.labels) for its in utterances) // _BATCH)
    warmup = min(_WARMUP_STEPS, steps // 4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / warmup, 1 - s / steps))
    batches = itertools.islice(_batches([len(its.labels) for its in utterances], generator), steps)
    console = Console(stderr=True, quiet=quiet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        for chosen in track(batches, "correction", steps, console=console, transient=True):
            batch = [utterances[i] for i in chosen]
            features, logits = (
                _padded([getattr(its, name) for its in batch]).float() for name in ("features", "logits")
            )
            labels = _padded([its.labels for its in batch], behind=-1)
            inside = _padded([np.ones((len(its.labels), 1), np.float32) for its in batch])
            heard = _unhidden(labels.shape)[..., None]
            seen = dropout((features - mean) / deviation * heard, _DROPOUT)
            corrected = logits * heard + _forward(seen, inside, weights, _DROPOUT)
            known = labels >= 0
            loss = cross_entropy(corrected[known], labels[known], label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), _LARGEST_NORM)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        weights["projection"] /= deviation
        weights["projection_bias"] -= weights["projection"] @ mean
    trained = Correction(**{name: its.detach().numpy() for name, its in weights.items()})
    return Correction.unpack(trained.packed())


def _initial(dimension: int, phones: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Normal weights, but zeros for the output: a correction begins with saying nothing."""
    blocks = len(DILATIONS)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    return {
        "projection": normal(_WIDTH, dimension),
        "projection_bias": torch.zeros(_WIDTH),
        "gains": torch.ones(blocks, _WIDTH),
        "filters": normal(blocks, _WIDTH, KERNEL),
        "expansion": normal(blocks, _HIDDEN, _WIDTH),
        "expansion_bias": torch.zeros(blocks, _HIDDEN),
        "contraction": normal(blocks, _WIDTH, _HIDDEN) / 4,
        "contraction_bias": torch.zeros(blocks, _WIDTH),
        "output": torch.zeros(phones, _WIDTH),
        "output_bias": torch.zeros(phones),
    }


def _forward(
    seen: torch.Tensor, inside: torch.Tensor, weights: Mapping[str, torch.Tensor], dropped: float = 0.0
) -> torch.Tensor:
    """Return ``[batch, frames, phones]`` of features ``[batch, frames, dimension]``; ``inside`` is 0 behind an end."""
    state = (seen @ weights["projection"].T + weights["projection_bias"]) * inside
    for block, dilation in enumerate(DILATIONS):
        around = _convolved(_normalised(state) * weights["gains"][block], weights["filters"][block], dilation)
        hidden = relu(around @ weights["expansion"][block].T + weights["expansion_bias"][block])
        added = dropout(hidden, dropped) @ weights["contraction"][block].T + weights["contraction_bias"][block]
        state = state + added * inside
    return _normalised(state) @ weights["output"].T + weights["output_bias"]


def _convolved(frames: torch.Tensor, filters: torch.Tensor, dilation: int) -> torch.Tensor:
    """Convolve each number of ``[batch, frames, width]`` over time.

    PyTorch's own, with groups, takes 2 to 4 times as long (results/by_hand.json, cost_of_the_correction).
    """
    reach = dilation * (KERNEL // 2)
    padded, count = pad(frames, (0, 0, reach, reach)), frames.shape[1]
    summed = padded[:, :count] * filters[:, 0]
    for place in range(1, KERNEL):
        summed = torch.addcmul(summed, padded[:, place * dilation :][:, :count], filters[:, place])
    return summed


def _normalised(state: torch.Tensor) -> torch.Tensor:
    return state * torch.rsqrt(state.square().mean(-1, keepdim=True) + _EPSILON)


def _batches(lengths: Sequence[int], generator: torch.Generator) -> Iterator[list[int]]:
    """Give places of utterances of about one length, together at most ``_BATCH`` frames if padded, without end."""
    while True:
        unsteady = torch.tensor(lengths) + 30 * torch.rand(len(lengths), generator=generator)
        batches: list[list[int]] = [[]]
        for place in torch.argsort(unsteady).tolist():
            if batches[-1] and lengths[place] * (len(batches[-1]) + 1) > _BATCH:
                batches.append([])
            batches[-1].append(place)
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]


def _padded(arrays: Sequence[np.ndarray], behind: float = 0.0) -> torch.Tensor:
    """Stack arrays ``[frames, ...]`` to ``[batch, most frames, ...]``."""
    return pad_sequence([torch.from_numpy(its) for its in arrays], batch_first=True, padding_value=behind)


def _unhidden(shape: torch.Size) -> torch.Tensor:
    """Return float32 ``[batch, frames]``: 0 in the spans that are hidden."""
    begins = (torch.rand(shape) < _HIDDEN_SPANS).float()
    return 1 - torch.stack([pad(begins, (later, 0))[:, : shape[1]] for later in range(_SPAN)]).amax(0)


def _rounded(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round rows (the last axis) to int8 times 2 to the power of int8; what was rounded before stays what it is."""
    _, exponents = np.frexp(np.abs(matrices).max(axis=-1) / 127.0)
    exponents = np.clip(exponents, -126, 126)
    halves = np.abs(matrices).max(axis=-1) == np.ldexp(np.float32(63.5), exponents)  # frexp's mantissas begin with 0.5
    exponents = (exponents - halves).astype(np.int8)
    return np.rint(np.ldexp(matrices, -exponents.astype(np.int64)[..., None])).astype(np.int8), exponents
