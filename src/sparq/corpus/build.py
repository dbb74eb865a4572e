"""Building a corpus on one machine: codebook, then shards, in several processes; what was killed goes on.

It is a stage (:mod:`sparq.stages`). Everything that stands for finished work is a file written whole: features of the
utterances that the codebook is fitted on, the codebook, each shard. A second start makes only what is missing. What
comes out is the same for any number of processes, byte for byte, but for Piper's voices, which draw noise of their own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparq.artifacts import named_folder, read_manifest, require_match, require_writable, write_manifest, write_text
from sparq.config import CorpusConfig
from sparq.corpus.codebook import codebook_on_plan, load_codebook
from sparq.corpus.corpus import CODEBOOK, SHARDS, STATISTICS, Corpus, shard_paths
from sparq.corpus.parts import Measured, Part, make_parts
from sparq.corpus.plan import Plan, plan_corpus
from sparq.corpus.sentences import source_names
from sparq.corpus.shard import build_shard
from sparq.corpus.table import SKIPPED
from sparq.corpus.workers import Workers
from sparq.errors import UserError
from sparq.schema import dump
from sparq.speech.encoder import Encoder, load_encoder
from sparq.speech.units import Codebook, UnitExtractor
from sparq.speech.voices import load_voice
from sparq.stages import Stage, require_free, run_stage

_FEATURES = "features"  # is there only while the work is going on


def corpus_stage(
    config: CorpusConfig, name: str = "corpus", *, quiet: bool = False, skip_untranscribed: bool = False
) -> Stage:
    """Describe the building of a corpus as a stage, for :func:`sparq.stages.run_stage`.

    Args:
        config: what it is made of.
        name: of the stage.
        quiet: without progress bars.
        skip_untranscribed: see :func:`sparq.corpus.plan.plan_corpus`.

    Raises:
        UserError: a source, encoder or codebook cannot be read.
        ArtifactMismatchError: the codebook was made for another encoder.
    """
    plan = plan_corpus(config, skip_untranscribed=skip_untranscribed)
    ready = None if config.units.name is None else load_codebook(config.units.name)
    encoder = load_encoder(config.encoder.name, config.encoder.layers or (None if ready is None else ready.layers))
    inputs = {"utterances": plan.fingerprint, "encoder": encoder.fingerprint}
    if ready is not None:
        UnitExtractor(encoder, ready)  # raises if they were not made for each other
        inputs["codebook"] = ready.fingerprint
    build = functools.partial(_build, config, plan, encoder, ready, inputs, quiet=quiet)
    return Stage(name, _settings(config), inputs, build)


def build_corpus(config: CorpusConfig, folder: Path, *, quiet: bool = False, overwrite: bool = False) -> Corpus:
    """Build a corpus in a folder, or go on with what a killed start left there.

    The statistics of the corpus are: ``utterances``, ``train``, ``held_out``, ``with_word_times``, ``with_audio``,
    ``hours``, ``text_only``, ``speech_only``, ``imagined`` (utterances that nobody said); ``processes`` and
    ``hours_of_audio_per_hour``, measured over the ``measured_hours`` of audio that this start made units of;
    ``left_out`` (reason → number of sentences that were not planned) and ``skipped`` (id and reason of each utterance
    that was planned and could not be used).

    Args:
        config: what it is made of.
        folder: where; made if need be.
        quiet: without progress bars.
        overwrite: replace what was made there with other settings or inputs.

    Raises:
        UserError: the folder is in the way, not to be replaced, or cannot be written; a source, voice, encoder or
            codebook cannot be had, or no utterance at all can be used; then nothing is left.
    """
    folder = named_folder(folder)
    require_free(folder)
    require_writable(folder)
    stage = corpus_stage(config, folder.name, quiet=quiet)
    run_stage(folder.parent, stage, overwrite=overwrite)
    return Corpus.load(folder)


def write_shard(codebook: Codebook, part: Part) -> tuple[Part, float]:
    """Write a shard as Parquet, and return it with the seconds of audio in it."""
    table = build_shard(part.items, codebook)
    part.write(lambda path: pq.write_table(table, path, compression="zstd"))
    return part, sum(table["seconds"].to_pylist())


def _build(
    config: CorpusConfig,
    plan: Plan,
    encoder: Encoder,
    ready: Codebook | None,
    inputs: dict[str, str],
    folder: Path,
    *,
    quiet: bool,
) -> None:
    """Make what is not there yet; where that fails because of what was given, nothing is left to go on from."""
    for voice in sorted({item.voice for item in plan.items if item.voice}):
        load_voice(voice)  # what is missing is said now, and not by a worker
    for name in (SHARDS, _FEATURES):
        (folder / name).mkdir(exist_ok=True)
    try:
        _make(config, plan, encoder, ready, folder, inputs, quiet=quiet)
    except UserError:
        for name in (SHARDS, _FEATURES, CODEBOOK):
            shutil.rmtree(folder / name, ignore_errors=True)
        raise
    shutil.rmtree(folder / _FEATURES)
    for left in (folder / SHARDS).glob(".*"):  # half of a shard, from a start that was killed
        left.unlink()


def _make(
    config: CorpusConfig,
    plan: Plan,
    encoder: Encoder,
    ready: Codebook | None,
    folder: Path,
    inputs: dict[str, str],
    *,
    quiet: bool,
) -> None:
    """Make what is not there yet: the codebook, each shard, the statistics, and the manifest last."""
    parts = [Part(*pair) for pair in zip(shard_paths(folder, len(plan.shards)), plan.shards, strict=True)]
    with Workers(config.processes) as workers:
        if not (folder / CODEBOOK).exists():
            book = codebook_on_plan(plan, encoder, config.units, ready, folder / _FEATURES, workers, quiet=quiet)
            book.save(folder / CODEBOOK)
        codebook = Codebook.load(folder / CODEBOOK)
        for readers in plan.readers:
            theirs = read_manifest(readers, "corpus").inputs["codebook"]
            require_match(f"{readers}: what is imagined", codebook.fingerprint, theirs)
        measured = make_parts(functools.partial(write_shard, codebook), parts, workers, "corpus", quiet=quiet)
    statistics = _statistics(plan, parts, measured, config.processes)
    write_text(folder / STATISTICS, json.dumps(statistics, indent=2, ensure_ascii=False) + "\n")
    content = hashlib.sha256(b"".join(hashlib.sha256(part.path.read_bytes()).digest() for part in parts)).hexdigest()
    made = inputs | {"codebook": codebook.fingerprint, "shards": content[:16]}
    told = {
        name: source.serves for source in config.sources if source.serves is not None for name in source_names(source)
    }
    write_manifest(folder, "corpus", _settings(config) | {"shards": len(parts), "tasks": told}, made)


def _settings(config: CorpusConfig) -> dict[str, Any]:
    """Everything that decides what comes out."""
    return {name: value for name, value in dump(config).items() if name not in ("name", "processes")}


def _statistics(plan: Plan, parts: list[Part], measured: Measured, processes: int) -> dict[str, Any]:
    skipped: list[tuple[str, str]] = []
    splits: list[str] = []
    seconds, timed, kept, written, spoken, imagined = 0.0, 0, 0, 0, 0, 0
    for part in parts:
        file = pq.ParquetFile(part.path)
        skipped += json.loads(file.schema_arrow.metadata[SKIPPED])
        table = file.read(columns=["split", "text", "units", "seconds", "word_starts", "audio"])
        splits += table["split"].to_pylist()
        seconds += sum(table["seconds"].to_pylist())
        imagined += pc.sum(pc.and_(pc.is_valid(table["units"]), pc.equal(table["seconds"], 0.0))).as_py() or 0
        timed += len(table) - table["word_starts"].null_count
        kept += len(table) - table["audio"].null_count
        written += table["units"].null_count
        spoken += table["text"].null_count
    if not splits:
        name, reason = skipped[0]
        raise UserError(f"none of {len(plan.items)} utterances can be used ({name}: {reason})")
    return {
        "utterances": len(splits),
        "train": splits.count("train"),
        "held_out": splits.count("held_out"),
        "with_word_times": timed,
        "with_audio": kept,
        "text_only": written,
        "speech_only": spoken,
        "imagined": imagined,
        "hours": round(seconds / 3600, 4),
        "processes": processes,
        "hours_of_audio_per_hour": round(measured.rate, 1),
        "measured_hours": round(measured.audio, 4),
        "left_out": plan.left_out,
        "skipped": [{"id": name, "reason": reason} for name, reason in skipped],
    }
