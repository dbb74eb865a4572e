"""The codebook of a corpus: a ready one, the one that an earlier start fitted, or one fitted on some of the corpus."""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
from sparq.speech.phones import frame_phones, pronounce
from sparq.speech.phonetic import Heard
from sparq.speech.units import Codebook, UnitExtractor, fit_codebook, fit_phonetic_codebook, refine_codebook
from sparq.speech.voice import Utterance


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
    return UnitExtractor(load_encoder(codebook.encoder_name, codebook.layers), codebook)


def codebook_on_plan(
    plan: Plan,
    encoder: Encoder,
    config: UnitsConfig,
    ready: Codebook | None,
    folder: Path,
    workers: Workers,
    *,
    quiet: bool = False,
) -> Codebook:
    """Give a ready codebook, refined if that is asked for, or fit one on training utterances spread over the sources.

    Args:
        plan: what the corpus will hold.
        encoder: whose features are clustered.
        config: how many utterances and clusters, and the seed.
        ready: the codebook that is there already, or None.
        folder: where features are kept meanwhile; those that an earlier start left there are used.
        workers: who make features.
        quiet: without a progress bar.

    Raises:
        UserError: there is no speech, no utterance could be made, they have fewer frames than clusters, or the
            ready codebook has plain units, which nothing refines.
    """
    if ready is not None and not config.refine:
        return ready
    heard = _heard(plan, encoder, config, folder, workers, quiet=quiet)
    with threadpool_limits(1):  # sums in one order, whatever the machine
        if ready is not None:
            return refine_codebook(ready, heard, config.seed, quiet=quiet)
        if config.kind == "phonetic":
            return fit_phonetic_codebook(
                heard, encoder, config.clusters, config.seed, refine=config.refine, quiet=quiet
            )
        return fit_codebook([one.features for one in heard], encoder, config.clusters, config.seed)


def _heard(
    plan: Plan, encoder: Encoder, config: UnitsConfig, folder: Path, workers: Workers, *, quiet: bool
) -> list[Heard]:
    """Features of the first training utterances, and of phonetic units their phones."""
    chosen = Plan(plan.to_fit(config.fit_utterances), {})
    if not chosen.items:
        if config.name is not None:
            raise UserError("units.refine: true (expected false: there is no speech to refine units on)")
        raise UserError("units.name: null (expected a ready codebook: there is no speech to fit units on)")
    parts = [Part(folder / f"{index:05d}.npz", items) for index, items in enumerate(chosen.shards)]
    make_parts(
        functools.partial(_write_features, encoder.name, encoder.layers, config.kind),
        parts,
        workers,
        "codebook",
        quiet=quiet,
    )
    heard: list[Heard] = []
    reasons: list[str] = []
    for part in parts:
        with np.load(part.path) as arrays:
            each = np.split(arrays["features"], np.cumsum(arrays["frames"]))[:-1]
            its = zip(each, arrays["phones"], arrays["timed"], strict=True)
            heard += [Heard(features, tuple(str(phones)), bool(timed)) for features, phones, timed in its]
            reasons += arrays["reasons"].tolist()
    if not heard:
        raise UserError(f"none of {len(chosen.items)} utterances can be used to fit units on ({reasons[0]})")
    return heard


def _write_features(encoder: str, layers: tuple[int, ...], kind: str, part: Part) -> tuple[Part, float]:
    """Write features of utterances end to end, and of phonetic units the phones of each, a letter for each."""
    loaded = cached_encoder(encoder, layers)
    made, skipped = shard_features(part.items, loaded)
    phones, timed = [""] * len(made), [False] * len(made)
    if kind == "phonetic":
        timed = [said.phones is not None for _, said, _ in made]
        phones = ["".join(_phones(item.text, said, len(features), loaded)) for item, said, features in made]
    arrays = {
        "features": np.concatenate([np.zeros((0, loaded.dimension), np.float32), *(its for _, _, its in made)]),
        "frames": np.array([len(its) for _, _, its in made], np.int64),
        "phones": np.array(phones, dtype=np.str_),
        "timed": np.array(timed, dtype=bool),
        "reasons": np.array([f"{name}: {reason}" for name, reason in skipped], dtype=np.str_),
    }
    if kind == "phonetic":
        arrays["features"] = arrays["features"].astype(np.float16)  # several layers of many utterances

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    part.write(write)
    return part, len(arrays["features"]) * loaded.hop / RATE


def _phones(text: str | None, said: Utterance, frames: int, encoder: Encoder) -> Sequence[str]:
    """The phone of every frame where the voice told, the phones of the text where it did not."""
    if said.phones is not None:
        return frame_phones(said.phones, frames, encoder)
    return () if text is None else pronounce(text)
