"""A corpus: a folder of Parquet shards with the codebook that its units are numbered by.

::

    corpus/
        sparq.json          what it was made of; its fingerprint hashes the content of all shards
        statistics.json     hours, hours of audio per hour of work, what was skipped and why
        codebook/           the artifact that made the units
        shards/00000.parquet ...
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparq.artifacts import Manifest, read_manifest, require_match
from sparq.corpus.plan import Split
from sparq.corpus.table import SCHEMA
from sparq.corpus.utterance import Utterance
from sparq.errors import UserError
from sparq.schema import did_you_mean
from sparq.speech.audio import load_audio
from sparq.speech.units import Codebook

if TYPE_CHECKING:
    from sparq.speech.training_segments import Recording

CODEBOOK, SHARDS, STATISTICS = "codebook", "shards", "statistics.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Utterances with their units.

    Attributes:
        folder: where it lies.
        manifest: how it was made.
        codebook: what its units are numbers of.
        statistics: see :func:`sparq.corpus.build.build_corpus`.
        table: all columns but the audio.
    """

    folder: Path
    manifest: Manifest
    codebook: Codebook
    statistics: dict[str, Any]
    table: pa.Table

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Read a corpus.

        Raises:
            UserError: not a corpus, or a shard is missing or damaged.
            ArtifactMismatchError: the codebook in it is not the one that made its units.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, "corpus")
        codebook = Codebook.load(folder / CODEBOOK)
        require_match(f"{folder}: the corpus", manifest.inputs["codebook"], codebook.fingerprint)
        try:
            statistics = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / STATISTICS}: missing or damaged ({error})") from error
        paths = shard_paths(folder, int(manifest.settings["shards"]))
        columns = [name for name in SCHEMA.names if name != "audio"]
        # A shard that an earlier SpARQ made may lack a column.
        table = pa.concat_tables((_read(path, columns) for path in paths), promote_options="default")
        if "disturbed" not in table.column_names:  # made when nothing was
            table = table.append_column("disturbed", pa.array(np.zeros(len(table), bool)))
        if "views" not in table.column_names:  # made when there was but one way to hear
            table = table.append_column("views", pa.nulls(len(table), SCHEMA.field("views").type))
        return cls(folder, manifest, codebook, statistics, table)

    @property
    def fingerprint(self) -> str:
        """Hash of all shards and the codebook."""
        return self.manifest.fingerprint

    @property
    def seconds(self) -> float:
        """Seconds of speech in it."""
        return float(pc.sum(self.table["seconds"]).as_py() or 0.0)

    @property
    def summary(self) -> str:
        """What it holds, how fast that was made and what was skipped, in one line."""
        told = self.statistics
        line = (
            f"{told['utterances']} utterances ({told['train']} to train on, {told['held_out']} held out), "
            f"{told['hours']:.2f} hours at {told['hours_of_audio_per_hour']:.0f} hours of audio per hour "
            f"in {told['processes']} processes"
        )
        alone = [f"{told[f'{kind}_only']} of {kind} alone" for kind in ("speech", "text") if told.get(f"{kind}_only")]
        alone += [f"{told['imagined']} read in imagination"] if told.get("imagined") else []
        line += f"; {', '.join(alone)}" if alone else ""
        skipped = told["skipped"]
        return line + (f"; {len(skipped)} skipped, such as {' ('.join(skipped[0].values())})" if skipped else "")

    @property
    def sources(self) -> list[str]:
        """Names of the sources; the phrases cut out of one are called ``<source>/phrases``."""
        return sorted(self.table["source"].unique().to_pylist())

    def utterances(self, split: Split, sources: Iterable[str] | None = None) -> list[Utterance]:
        """Give the utterances of a split, in the order of the shards.

        Args:
            split: "train" or "held_out".
            sources: which sources; None for all.

        Raises:
            UserError: there is no such source or split.
        """
        part = self.table.filter(self._which(self.table, split, sources))
        columns = [_arrays(part[name]) for name in ("units", "word_starts", "word_ends")]
        tasks = {source: tuple(names) for source, names in self.manifest.settings.get("tasks", {}).items()}
        return [
            Utterance(
                text or "",
                np.zeros(0, np.int64) if units is None else units,
                starts,
                ends,
                tasks.get(source),
                disturbed,
                tuple(np.array(its, np.int64) for its in views or ()),
            )
            for text, source, disturbed, views, units, starts, ends in zip(
                *(part[name].to_pylist() for name in ("text", "source", "disturbed", "views")), *columns, strict=True
            )
        ]

    def recordings(self, sources: Iterable[str] | None = None, split: Split = "train") -> list[Recording]:
        """Give the utterances whose audio was kept, to train or to measure a vocoder on.

        Where nobody knows who speaks, all of a source count as one speaker, named after it.

        Raises:
            UserError: there is no such source, or no audio was kept.
        """
        from sparq.speech.training_segments import Recording

        found = []
        for path in shard_paths(self.folder, int(self.manifest.settings["shards"])):
            shard = _read(path, ["source", "split", "text", "speaker", "units", "audio"])
            part = shard.filter(pc.and_(self._which(shard, split, sources), pc.is_valid(shard["audio"])))
            columns = [part[name].to_pylist() for name in ("audio", "text", "speaker", "source")]
            for audio, text, speaker, source, units in zip(*columns, _arrays(part["units"]), strict=True):
                assert units is not None
                found.append(Recording(load_audio(io.BytesIO(audio)), units, speaker or source, text))
        if not found:
            raise UserError(f"{self.folder}: no audio was kept of its part {split} (build it with keep_audio)")
        return found

    def _which(self, table: pa.Table, split: str, sources: Iterable[str] | None) -> pa.Array:
        if split not in ("train", "held_out"):
            raise UserError(f"split {split!r}: expected train or held_out")
        wanted = pc.equal(table["split"], split)
        if sources is None:
            return wanted
        names, known = list(sources), self.sources
        for name in names:
            if name not in known:
                raise UserError(f"{self.folder}: there is no source {name!r} in it ({did_you_mean(name, known)})")
        return pc.and_(wanted, pc.is_in(table["source"], pa.array(names, pa.string())))


def shard_paths(folder: Path, count: int) -> list[Path]:
    """Name the shards of a corpus of so many."""
    return [folder / SHARDS / f"{index:05d}.parquet" for index in range(count)]


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        # Not through a dataset: one file as it is, without the metadata of the schema, which is another in each.
        return pq.ParquetFile(path).read(columns=list(columns)).replace_schema_metadata(None)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{path}: missing or damaged shard ({' '.join(str(error).split())})") from error


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """Lists of numbers as int64 [length] arrays, null as None."""
    found: list[np.ndarray | None] = []
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=False).astype(np.int64)
        offsets = chunk.offsets.to_numpy()
        present = chunk.is_valid().to_numpy(zero_copy_only=False)
        found += [values[a:b] if ok else None for a, b, ok in zip(offsets[:-1], offsets[1:], present, strict=True)]
    return found
