"""Speech units: the nearest of k centroids (k-means) for every frame of an encoder, or every phonetic segment.

Plain units are the paper's (Lakhotia et al. 2021; k = 200). Phonetic ones are clusters of what a classifier of phones
says about a segment (``speech/phonetic.py``); all frames of a segment have its unit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sparq.artifacts import fingerprint, new_folder, read_manifest, require_match, write_manifest
from sparq.errors import UserError
from sparq.speech.encoder import Encoder
from sparq.speech.phones import PAUSE
from sparq.speech.phonetic import Heard, PhoneClassifier, load_classifier, refine_classifier, train_classifier

Units = Sequence[int] | np.ndarray
"""Numbers of centroids, one a frame, or one for each run of equal ones (merged)."""

_CENTROIDS = "centroids.safetensors"
_CLASSIFIER = "classifier.safetensors"
_FRAMES = 4096  # whose distances to all centroids are held at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Codebook:
    """Centroids of one encoder.

    Attributes:
        centroids: float32 ``[size, dimension]``, or ``[size, phones]`` of phonetic units.
        encoder: fingerprint of the encoder whose features they are the means of.
        encoder_name: what to give ``load_encoder``.
        layers: the same.
        classifier: of phones, whose opinions the centroids are the means of; None where they are means of features.
    """

    centroids: np.ndarray
    encoder: str
    encoder_name: str
    layers: tuple[int, ...]
    classifier: PhoneClassifier | None = None

    @property
    def size(self) -> int:
        """The number of units."""
        return len(self.centroids)

    @property
    def pauses(self) -> np.ndarray:
        """Numbers of the units that stand for silence, by what the classifier says; of plain units none is known to."""
        if self.classifier is None or PAUSE not in self.classifier.phones:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.centroids.argmax(axis=1) == self.classifier.phones.index(PAUSE))

    @property
    def meaning(self) -> str:
        """Hash of what the units mean, the correction of a classifier aside; language model and vocoder carry it.

        Parts of one meaning belong together, so that a refined codebook serves what was made for the plain one.
        """
        if self.classifier is None or self.classifier.correction is None:
            return self.fingerprint
        return dataclasses.replace(self, classifier=dataclasses.replace(self.classifier, correction=None)).fingerprint

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which units come out; a corpus carries it."""
        layer = self.layers[0] if len(self.layers) == 1 else self.layers
        parts = {"centroids": self.centroids, "encoder": self.encoder, "layer": layer}
        if self.classifier is not None:
            parts |= self.classifier.arrays()
        return fingerprint(parts)

    def assign(self, features: np.ndarray) -> np.ndarray:
        """Return the unit of every frame: ``[frames, dimension]`` → int64 ``[frames]``.

        Raises:
            UserError: features of another dimension.
        """
        if self.classifier is None:
            return self._nearest(features)
        means, lengths = self.classifier.segments(features)
        return np.repeat(self._nearest(means), lengths)

    def _nearest(self, features: np.ndarray) -> np.ndarray:
        """Minimise ‖x − c‖² = ‖x‖² − 2x·c + ‖c‖², of which the first term is the same for all centroids."""
        if features.ndim != 2 or features.shape[1] != self.centroids.shape[1]:
            raise UserError(f"features {list(features.shape)} do not fit a codebook of {list(self.centroids.shape)}")
        norms = np.square(self.centroids).sum(axis=1)
        units = np.empty(len(features), np.int64)
        for i in range(0, len(features), _FRAMES):
            units[i : i + _FRAMES] = (norms - 2.0 * (features[i : i + _FRAMES] @ self.centroids.T)).argmin(axis=1)
        return units

    def save(self, folder: Path) -> None:
        """Write the artifact folder of kind "codebook"."""
        with new_folder(Path(folder)) as made:
            save_file({"centroids": np.ascontiguousarray(self.centroids)}, made / _CENTROIDS)
            if self.classifier is not None:
                self.classifier.save(made / _CLASSIFIER)
            settings = {
                "encoder": self.encoder_name,
                "layers": list(self.layers),
                "size": self.size,
                "phonetic": self.classifier is not None,
                "codebook": self.fingerprint,
            }
            write_manifest(made, "codebook", settings, {"encoder": self.encoder})

    @classmethod
    def load(cls, folder: Path) -> Codebook:
        """Read an artifact folder of kind "codebook".

        Raises:
            UserError: not such a folder, or damaged.
        """
        manifest = read_manifest(Path(folder), "codebook")
        path = Path(folder) / _CENTROIDS
        try:
            centroids, settings = load_file(path)["centroids"], manifest.settings
            classifier = load_classifier(path.with_name(_CLASSIFIER)) if settings.get("phonetic") else None
            layers = tuple(settings["layers"])
            book = cls(centroids, manifest.inputs["encoder"], settings["encoder"], layers, classifier)
            require_match(f"{folder}: the manifest", manifest.settings["codebook"], book.fingerprint)
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(f"{path}: damaged codebook ({error})") from error
        return book


def fit_codebook(features: Iterable[np.ndarray], encoder: Encoder, k: int = 200, seed: int = 0) -> Codebook:
    """Fit k centroids by mini-batch k-means (Sculley 2010; batches of 8192 frames, the best of 3 starts).

    Args:
        features: arrays ``[frames, dimension]`` of the encoder; they are held in memory together.
        encoder: the encoder that made them.
        k: the number of units.
        seed: the same features, k and seed give the same codebook.

    Raises:
        UserError: fewer than k frames.
    """
    return Codebook(_cluster(features, k, seed), encoder.fingerprint, encoder.name, encoder.layers)


def fit_phonetic_codebook(
    utterances: Sequence[Heard],
    encoder: Encoder,
    k: int = 200,
    seed: int = 0,
    *,
    refine: bool = False,
    quiet: bool = True,
) -> Codebook:
    """Train a classifier of phones on utterances, and fit k centroids to what it says of their segments.

    Args:
        utterances: held in memory together.
        encoder: which made their features.
        k: the number of units.
        seed: the same utterances, k and seed give the same codebook.
        refine: whether a network corrects the classifier.
        quiet: without a progress bar.

    Raises:
        UserError: no utterance's phones are timed, or there are fewer than k segments.
    """
    classifier = train_classifier(utterances, seed)
    if refine:
        classifier = refine_classifier(classifier, utterances, seed, quiet=quiet)
    means = [classifier.segments(heard.features)[0] for heard in utterances]
    return Codebook(_cluster(means, k, seed), encoder.fingerprint, encoder.name, encoder.layers, classifier)


def refine_codebook(book: Codebook, utterances: Sequence[Heard], seed: int = 0, *, quiet: bool = True) -> Codebook:
    """Give the classifier of a phonetic codebook a correction, or teach the one that it has; the clusters stay.

    Raises:
        UserError: the codebook has no classifier, or no utterance could be aligned.
    """
    if book.classifier is None:
        raise UserError("units.refine: true (expected a phonetic codebook; this one has plain units)")
    return dataclasses.replace(book, classifier=refine_classifier(book.classifier, utterances, seed, quiet=quiet))


def _cluster(points: Iterable[np.ndarray], k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    arrays = list(points)
    together = np.concatenate(arrays) if arrays else np.zeros((0, 1), np.float32)
    if not 1 <= k <= len(together):
        raise UserError(
            f"k = {k}: expected 1 to {len(together)}, the number of frames or segments to fit a codebook on"
        )
    means = MiniBatchKMeans(k, batch_size=8192, n_init=3, random_state=seed).fit(together)
    centroids: np.ndarray = means.cluster_centers_.astype(np.float32)
    return centroids


def merge_repeats(units: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge runs of one unit: int64 ``[frames]`` → (units ``[runs]``, how many frames each lasted ``[runs]``)."""
    array = np.asarray(units, np.int64)
    starts = np.flatnonzero(np.diff(array, prepend=-1)) if array.size else np.zeros(0, np.int64)
    return array[starts], np.diff(starts, append=array.size)


class UnitExtractor:
    """Waveforms to units, by an encoder and the codebook that was made for it.

    Raises:
        ArtifactMismatchError: the codebook was fitted on another encoder, layer or weights.
    """

    def __init__(self, encoder: Encoder, codebook: Codebook) -> None:
        require_match("the codebook", codebook.encoder, encoder.fingerprint)
        self.encoder = encoder
        self.codebook = codebook

    def extract(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return raw units int64 ``[frames]``, repeats not merged, of each 16 kHz waveform."""
        return [self.codebook.assign(features) for features in self.encoder.encode(waveforms)]
