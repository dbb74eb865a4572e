"""How long a merged unit lasts: a small convolutional predictor, as in the unit HiFi-GAN.

A language model over merged units says *what* is spoken; this says how many frames each unit takes. The network is
FastSpeech 2's variance predictor on unit embeddings, trained by squared error on log(1 + frames) (Lee et al. 2022,
"Direct Speech-to-Speech Translation with Discrete Units", section 3.3). The logarithm's mean is that of fewer frames
than the mean: the last bias is moved until as many are predicted as were learnt from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from sparq.speech.units import merge_repeats

_CALIBRATING = 500  # sequences, for the mean length


class DurationPredictor(nn.Module):
    """Two convolutions with layer normalisation over unit embeddings, then one number per unit.

    Args:
        units: size of the codebook.
        width: size of the embeddings and of the hidden layers.
        kernel: units that each convolution sees.
        dropout: after each layer, while training.
        speaker_dim: size of a speaker embedding, which is projected and added to those of the units; 0 for one voice.

    Attributes:
        context: units on either side that a duration depends on.
    """

    def __init__(
        self, units: int, width: int = 128, kernel: int = 5, dropout: float = 0.2, speaker_dim: int = 0
    ) -> None:
        super().__init__()
        self.context = 2 * (kernel // 2)
        self.embedding = nn.Embedding(units, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(width, 1)
        self.speaker = nn.Linear(speaker_dim, width) if speaker_dim else None
        if self.speaker is not None:
            nn.init.zeros_(self.speaker.weight)

    def forward(self, units: Tensor, lengths: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Predict log(1 + frames).

        Args:
            units: merged, int64 [batch, units], padded to one length.
            lengths: int64 [batch], units that count.
            speaker: [batch, speaker_dim], exactly if there is a ``speaker_dim``.

        Returns:
            float [batch, units].
        """
        mask = (torch.arange(units.shape[1], device=units.device) < lengths[:, None])[..., None]
        x = self.embedding(units)
        if self.speaker is not None:
            assert speaker is not None
            # The entries of an embedding of length 1 are of the order of 1/√dimension.
            x = x + self.speaker(speaker * speaker.shape[1] ** 0.5)[:, None]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            y = convolution((x * mask).transpose(1, 2)).transpose(1, 2)
            x = self.dropout(norm(functional.relu(y)))
        return self.last(x)[..., 0]

    @torch.no_grad()
    def durations(self, units: Tensor, lengths: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Predict whole frames, int64 [batch, units], at least one each and zero beyond a sequence's length."""
        frames = torch.expm1(self(units, lengths, speaker)).round().long().clamp(min=1)
        return frames * (torch.arange(units.shape[1], device=units.device) < lengths[:, None])

    def loss(self, units: Sequence[Tensor], durations: Sequence[Tensor], speaker: Tensor | None = None) -> Tensor:
        """Mean squared error of log(1 + frames) over a batch of merged sequences."""
        lengths = torch.tensor([len(u) for u in units])
        predicted = self(pad_sequence(list(units), batch_first=True), lengths, speaker)
        wanted = torch.log1p(pad_sequence(list(durations), batch_first=True).float())
        mask = torch.arange(predicted.shape[1]) < lengths[:, None]
        return (predicted - wanted)[mask].square().mean()


def fit_durations(
    sequences: Sequence[np.ndarray],
    units: int,
    *,
    speakers: np.ndarray | None = None,
    steps: int = 1500,
    batch: int = 24,
    seed: int = 0,
    start: DurationPredictor | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> DurationPredictor:
    """Train a duration predictor on raw unit sequences.

    Args:
        sequences: int [frames] each, repeats not merged, none of them empty.
        units: size of the codebook.
        speakers: who speaks each, float32 [sequences, speaker_dim], or None for one voice.
        steps: Adam steps, the learning rate falling linearly from 2e-3 to nothing.
        batch: sequences per step.
        seed: of weights, dropout and batches.
        start: one to go on from, which stays as it is; None for a new one.
        report: told of every step that is done.
    """
    merged = [merge_repeats(sequence) for sequence in sequences]
    embeddings = None if speakers is None else torch.from_numpy(speakers)
    random = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if start is None:
            model = DurationPredictor(units, speaker_dim=0 if speakers is None else speakers.shape[1])
        else:
            model = copy.deepcopy(start).train().requires_grad_()
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            drawn = random.integers(len(merged), size=batch)
            chosen = [merged[i] for i in drawn]
            loss = model.loss(
                [torch.as_tensor(u, dtype=torch.long) for u, _ in chosen],
                [torch.as_tensor(d, dtype=torch.long) for _, d in chosen],
                None if embeddings is None else embeddings[drawn],
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            report(step + 1)
        model.eval()
        drawn = random.permutation(len(merged))[:_CALIBRATING]
        _calibrate(model, [merged[i] for i in drawn], None if embeddings is None else embeddings[drawn])
    return model


@torch.no_grad()
def _calibrate(
    model: DurationPredictor, merged: Sequence[tuple[np.ndarray, np.ndarray]], embeddings: Tensor | None
) -> None:
    """Move the last bias by δ such that Σ (exp(x + δ) − 1) over all units, x predicted, is the number of frames."""
    predicted, wanted = 0.0, 0.0
    for i, (units, frames) in enumerate(merged):
        speaker = None if embeddings is None else embeddings[i : i + 1]
        predicted += float(model(torch.as_tensor(units)[None], torch.tensor([len(units)]), speaker).exp().sum())
        wanted += float(frames.sum()) + len(units)
    model.last.bias.add_(math.log(wanted / predicted))
