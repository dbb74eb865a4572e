"""The codebook of a corpus: a ready one, the one that an earlier start fitted, or one fitted on some of the corpus."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from sparq.assets import shipped
from sparq.config import UnitsConfig
from sparq.corpus.parts import Part, make_parts
from sparq.corpus.plan import Plan
from sparq.corpus.shard import cached_encoder, shard_features
from sparq.corpus.workers import Workers
from sparq.errors import UserError
from sparq.speech.audio import RATE
from sparq.speech.encoder import Encoder, load_encoder
from sparq.speech.units import Codebook, UnitExtractor, fit_codebook


def load_codebook(name: str) -> Codebook:
    """Load a codebook: a folder, or the name of one that ships with SpARQ.

    Raises:
        UserError: there is none.
    """
    return Codebook.load(Path(name) if Path(name).is_dir() else shipped(name))


def load_extractor(codebook: Codebook) -> UnitExtractor:
    """Load the encoder that a codebook was made for, to make units of any 16 kHz waveform.

    Raises:
        UserError: the encoder cannot be had.
        ArtifactMismatchError: it is another than the codebook was made for.
    """
    return UnitExtractor(load_encoder(codebook.encoder_name, codebook.layer), codebook)


def fit_on_plan(
    plan: Plan, encoder: Encoder, config: UnitsConfig, folder: Path, workers: Workers, *, quiet: bool = False
) -> Codebook:
    """Fit k-means on training utterances spread over the sources of a plan.

    Args:
        plan: what the corpus will hold.
        encoder: whose features are clustered.
        config: how many utterances and clusters, and the seed.
        folder: where features are kept meanwhile; those that an earlier start left there are used.
        workers: who make features.
        quiet: without a progress bar.

    Raises:
        UserError: there is no speech, no utterance could be made, or they have fewer frames than there are clusters.
    """
    chosen = Plan(plan.to_fit(config.fit_utterances), {})
    if not chosen.items:
        raise UserError("units.name: null (expected a ready codebook: there is no speech to fit units on)")
    parts = [Part(folder / f"{index:05d}.npz", items) for index, items in enumerate(chosen.shards)]
    make_parts(functools.partial(_write_features, encoder.name, encoder.layer), parts, workers, "codebook", quiet=quiet)
    features: list[np.ndarray] = []
    reasons: list[str] = []
    for part in parts:
        with np.load(part.path) as arrays:
            features.append(arrays["features"])
            reasons += arrays["reasons"].tolist()
    if not sum(map(len, features)):
        raise UserError(f"none of {len(chosen.items)} utterances can be used to fit units on ({reasons[0]})")
    with threadpool_limits(1):  # sums in one order, whatever the machine
        return fit_codebook(features, encoder, config.clusters, config.seed)


def _write_features(encoder: str, layer: int, part: Part) -> tuple[Part, float]:
    loaded = cached_encoder(encoder, layer)
    features, skipped = shard_features(part.items, loaded)
    frames = np.concatenate([np.zeros((0, loaded.dimension), np.float32), *features])
    reasons = np.array([f"{name}: {reason}" for name, reason in skipped], dtype=np.str_)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, features=frames, reasons=reasons)

    part.write(write)
    return part, len(frames) * loaded.hop / RATE
