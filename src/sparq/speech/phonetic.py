"""Phonetic units: an encoder's frames are told apart by phone, before they are clustered.

k-means groups what is near, and most of what lies between two frames of an encoder is not phonetic: the reader, the
place in the clip, the sound before. A linear classifier of phones, on several layers and the neighbouring frames, looks
at what matters alone. A *segment* is a run of frames with one most probable phone; its units are the clusters of its
mean probabilities (as square roots, where the distance is Hellinger's), so that a segment that sounds like two phones
has another unit than a plain one. A unit is one segment long: about 13 of them a second.

The classifier learns from a voice that says when it spoke each phone, then from everything else, to which the phones of
the text are aligned by the classifier itself, twice. It may then be refined: a small network corrects what it says
(:mod:`sparq.speech.phone_correction`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from sparq.errors import UserError
from sparq.speech.forced_alignment import align
from sparq.speech.phone_correction import Correction, Labelled, train_correction
from sparq.speech.phones import PAUSE

CONTEXT = 1
"""Frames on either side that the classifier sees."""

_CORRECTION = "correction."  # before the names of its weights in a file
_RARE = 20  # frames of a phone, below which it is not learnt
_ROUNDS = 2  # of alignment
_EPOCHS = 4
_FEWEST_STEPS = 400  # taken by going through little speech more often
_BATCH = 1024
_RATE = 2e-3
_DROPOUT = 0.1
_SMOOTHING = 0.05
_UNLIKELY = -1.5  # mean log-probability of a frame, below which an alignment is not believed (another text was read)


@dataclasses.dataclass(frozen=True, eq=False)
class PhoneClassifier:
    """Phones of an encoder's frames, by one linear layer, corrected or not.

    Attributes:
        weight: float32 ``[phones, (2 * CONTEXT + 1) * dimension]``; the earliest frame's dimensions come first.
        bias: float32 ``[phones]``.
        phones: the classes, by their symbols.
        correction: what a network adds to the logits, if it was refined.
    """

    weight: np.ndarray
    bias: np.ndarray
    phones: tuple[str, ...]
    correction: Correction | None = None

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return float32 ``[frames, phones]`` of features ``[frames, dimension]``; the ends stand for what lies beyond.

        Raises:
            UserError: features of another dimension.
        """
        if features.ndim != 2 or features.shape[1] * (2 * CONTEXT + 1) != self.weight.shape[1]:
            raise UserError(f"features {list(features.shape)} do not fit phones of {list(self.weight.shape)}")
        logits = np.tile(self.bias, (len(features), 1))
        if len(features):
            padded = np.pad(np.asarray(features, np.float32), ((CONTEXT, CONTEXT), (0, 0)), "edge")
            for offset, part in enumerate(np.split(self.weight, 2 * CONTEXT + 1, axis=1)):
                logits += padded[offset : offset + len(features)] @ part.T
            if self.correction is not None:
                logits += self.correction.logits(features)
        return logits

    def segments(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean square root of the phones' probabilities in each segment, and how many frames it has.

        Args:
            features: ``[frames, dimension]``.

        Returns:
            float32 ``[segments, phones]`` and int64 ``[segments]``.
        """
        logits = self.logits(features)
        starts = np.flatnonzero(np.diff(logits.argmax(axis=1), prepend=-1)) if len(logits) else np.zeros(0, np.int64)
        lengths = np.diff(starts, append=len(logits))
        if not len(starts):
            return np.zeros((0, len(self.phones)), np.float32), lengths
        roots = np.exp(_log_softmax(logits) / 2)
        return np.add.reduceat(roots, starts, axis=0) / lengths[:, None].astype(np.float32), lengths

    def save(self, path: Path) -> None:
        """Write a safetensors file, exactly: training rounds matrices to half precision, a correction to eight bits."""
        correction = {} if self.correction is None else self.correction.packed()
        arrays = {"weight": self.weight.astype(np.float16), "bias": self.bias}
        save_file(arrays | _named(correction), path, {"phones": " ".join(self.phones)})

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights by name."""
        correction = {} if self.correction is None else self.correction.arrays()
        return {"weight": self.weight, "bias": self.bias} | _named(correction)


@dataclasses.dataclass(frozen=True, eq=False)
class Heard:
    """An utterance that the classifier learns from.

    Attributes:
        features: of an encoder, ``[frames, dimension]``, float16 or float32.
        phones: those of its text, in order (:func:`sparq.speech.phones.pronounce`); or, if ``timed``, of every frame.
        timed: whether it is known when they were spoken.
    """

    features: np.ndarray
    phones: Sequence[str]
    timed: bool


def load_classifier(path: Path) -> PhoneClassifier:
    """Read what :meth:`PhoneClassifier.save` wrote.

    Raises:
        OSError, KeyError, SafetensorError: it cannot be read, or is something else.
    """
    with safe_open(path, "numpy") as file:
        phones = tuple(file.metadata()["phones"].split(" "))
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    correction = {k.removeprefix(_CORRECTION): v for k, v in arrays.items() if k.startswith(_CORRECTION)}
    corrected = Correction.unpack(correction) if correction else None
    return PhoneClassifier(arrays["weight"].astype(np.float32), arrays["bias"], phones, corrected)


def train_classifier(utterances: Sequence[Heard], seed: int = 0) -> PhoneClassifier:
    """Train a classifier on utterances, some of which must be timed.

    Args:
        utterances: held in memory together.
        seed: of initial weights, dropout and order.

    Raises:
        UserError: no utterance is timed.
    """
    counts = Counter(phone for heard in utterances if heard.timed for phone in heard.phones)
    phones = tuple(sorted(phone for phone, count in counts.items() if count >= _RARE or phone == PAUSE))
    if len(phones) < 2:
        raise UserError(
            f"units.kind: phonetic needs a voice that times its phones, such as hibari "
            f"({counts.total()} frames with known phones)"
        )
    classes = {phone: index for index, phone in enumerate(phones)}
    timed = [heard for heard in utterances if heard.timed]
    others = [heard for heard in utterances if not heard.timed]
    labels = [np.array([classes.get(phone, -1) for phone in heard.phones], np.int64) for heard in timed]
    classifier = _train([heard.features for heard in timed], labels, phones, seed)
    for _ in range(_ROUNDS if others else 0):
        aligned = [_align(classifier, heard, classes) for heard in others]
        found = [(heard.features, path) for heard, path in zip(others, aligned, strict=True) if path is not None]
        features = [heard.features for heard in timed] + [its for its, _ in found]
        classifier = _train(features, labels + [path for _, path in found], phones, seed)
    return classifier


def refine_classifier(
    classifier: PhoneClassifier, utterances: Sequence[Heard], seed: int = 0, *, quiet: bool = True
) -> PhoneClassifier:
    """Give a classifier a correction that is trained on utterances; one that it has already goes on learning.

    Args:
        classifier: aligns the utterances that are not timed.
        utterances: held in memory together.
        seed: of initial weights, dropout and order.
        quiet: without a progress bar.

    Raises:
        UserError: no utterance could be aligned.
    """
    plain = dataclasses.replace(classifier, correction=None)
    classes = {phone: index for index, phone in enumerate(classifier.phones)}
    known = []
    for heard in utterances:
        if heard.timed:
            labels: np.ndarray | None = np.array([classes.get(phone, -1) for phone in heard.phones], np.int64)
        else:
            labels = _align(classifier, heard, classes)
        if labels is not None and (labels >= 0).any():
            known.append(Labelled(heard.features, plain.logits(heard.features).astype(np.float16), labels))
    if not known:
        raise UserError(f"units.refine: true (none of {len(utterances)} utterances sounds like its text)")
    return dataclasses.replace(plain, correction=train_correction(known, classifier.correction, seed, quiet=quiet))


def _align(classifier: PhoneClassifier, heard: Heard, classes: dict[str, int]) -> np.ndarray | None:
    logits = classifier.logits(heard.features)
    sequence = [classes[phone] for phone in heard.phones if phone in classes]
    found = align(_log_softmax(logits), sequence, classes[PAUSE])
    return None if found is None or found[1] < _UNLIKELY else found[0]


def _train(
    features: Sequence[np.ndarray], labels: Sequence[np.ndarray], phones: tuple[str, ...], seed: int
) -> PhoneClassifier:
    """Softmax regression on standardised features (AdamW, learning rate falling to 0); frames labelled -1 do not count.

    Frames are drawn from all utterances, and their neighbours taken from where they lie, so that no feature is held
    ``2 * CONTEXT + 1`` times.
    """
    generator = torch.Generator().manual_seed(seed)
    padded = np.concatenate([np.pad(its, ((CONTEXT, CONTEXT), (0, 0)), "edge") for its in features])
    places = np.cumsum([0, *(len(its) + 2 * CONTEXT for its in features)])
    centres = np.concatenate(
        [start + CONTEXT + np.flatnonzero(its >= 0) for start, its in zip(places, labels, strict=False)]
    )
    targets = torch.from_numpy(np.concatenate([its[its >= 0] for its in labels]))
    frames = torch.from_numpy(padded)
    sample = frames[torch.from_numpy(centres[:: max(1, len(centres) // 50_000)])].float()
    mean, deviation = sample.mean(0), sample.std(0) + 1e-5
    inputs = padded.shape[1] * (2 * CONTEXT + 1)
    offsets = torch.arange(-CONTEXT, CONTEXT + 1)
    weight = (torch.rand(len(phones), inputs, generator=generator) - 0.5) * 2 / inputs**0.5
    weight, bias = weight.requires_grad_(), torch.zeros(len(phones), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=_RATE, weight_decay=0.01)
    steps_an_epoch = -(-len(centres) // _BATCH)
    epochs = max(_EPOCHS, -(-_FEWEST_STEPS // steps_an_epoch))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * steps_an_epoch)
    middles = torch.from_numpy(centres)
    for _ in range(epochs):
        for chosen in torch.randperm(len(centres), generator=generator).split(_BATCH):
            seen = ((frames[middles[chosen][:, None] + offsets].float() - mean) / deviation).flatten(1)
            kept = torch.rand(seen.shape, generator=generator) >= _DROPOUT
            logits = (seen * kept / (1 - _DROPOUT)) @ weight.T + bias
            loss = torch.nn.functional.cross_entropy(logits, targets[chosen], label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        scale = deviation.repeat(2 * CONTEXT + 1)
        halves = (weight / scale).half().float()
        bias = bias - halves @ mean.repeat(2 * CONTEXT + 1)
    return PhoneClassifier(halves.numpy(), bias.detach().numpy(), phones)


def _named(correction: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{_CORRECTION}{name}": its for name, its in correction.items()}


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    found: np.ndarray = torch.from_numpy(logits).log_softmax(dim=1).numpy()
    return found
