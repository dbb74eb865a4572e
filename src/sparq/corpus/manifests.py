"""Manifests of Lhotse as a source, and with them every corpus that one of its recipes can read.

Manifests are JSON lines: *recordings* (which files), *supervisions* (who says what, from when to when, in which
recording), or *cuts*, which hold both. They are read as they are, so Lhotse need not be installed for it. A cut that
mixes or changes audio is not one utterance of a file, and is refused.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparq.artifacts import fingerprint, new_folder
from sparq.assets import cache
from sparq.corpus.layouts import objects_of
from sparq.corpus.recording import Found, Recording
from sparq.errors import UserError
from sparq.schema import did_you_mean


def read_lhotse(path: Path) -> Found:
    """Read manifests: a folder of them, or one file of cuts or of supervisions (with its recordings beside it)."""
    listings = [path]
    if path.is_dir():
        listings = sorted(path.glob("*supervisions*.jsonl*")) or sorted(path.glob("*cuts*.jsonl*"))
    for listing in listings:
        yield from _cuts(listing) if "supervisions" not in listing.name else _supervisions(listing)


def prepared(path: Path, recipe: str, parts: Sequence[str] = ()) -> Path:
    """Have a recipe of Lhotse look through a corpus, and give the folder of its manifests.

    They are kept in the cache of SpARQ (``$SPARQ_CACHE/lhotse``) and made once for each folder.

    Args:
        path: the folder of the corpus.
        recipe: as Lhotse calls it, such as "aishell".
        parts: what of it is looked through, where the recipe can be told.

    Raises:
        UserError: Lhotse is not installed or has no such recipe, or the recipe cannot read the corpus.
    """
    if importlib.util.find_spec("lhotse") is None:
        raise UserError(f"lhotse:{recipe}: needs Lhotse; run: pip install 'sparq[corpora]'")
    folder = cache("lhotse") / f"{recipe}-{fingerprint([str(path.resolve()), *parts])}"
    if folder.is_dir():
        return folder
    recipes = importlib.import_module("lhotse.recipes")
    known = [name.removeprefix("prepare_") for name in dir(recipes) if name.startswith("prepare_")]
    if recipe not in known:
        raise UserError(f"lhotse:{recipe}: Lhotse has no such recipe ({did_you_mean(recipe, known)})")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    prepare = getattr(recipes, f"prepare_{recipe}")
    asked = inspect.signature(prepare).parameters
    given: dict[str, Any] = {"corpus_dir" if "corpus_dir" in asked else next(iter(asked)): path}
    given |= {"dataset_parts": list(parts)} if parts and "dataset_parts" in asked else {}
    more = [name for name, its in asked.items() if its.default is its.empty and name not in (*given, "output_dir")]
    if more or "output_dir" not in asked:
        told = f"asks for {', '.join(more)} too" if more else "writes no manifests"
        raise UserError(f"lhotse:{recipe}: Lhotse's recipe {told}; use Lhotse, and name the folder of the manifests")
    with new_folder(folder) as made:
        try:
            prepare(**given, output_dir=made)
        except Exception as error:  # whatever somebody else's recipe stumbles over
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{path}: Lhotse's recipe {recipe} cannot read it ({told})") from error
        if not any(made.glob("*.jsonl*")):
            raise UserError(f"{path}: Lhotse's recipe {recipe} found nothing in it")
    return folder


def _supervisions(listing: Path) -> Found:
    recordings = listing.with_name(listing.name.replace("supervisions", "recordings"))
    files = {row["id"]: row for row, _ in objects_of(recordings) if "id" in row}
    for row, where in objects_of(listing):
        try:
            if row["recording_id"] not in files:
                raise UserError(f"{where}: recording {row['recording_id']} is not in {recordings.name}")
            yield _utterance(row, files[row["recording_id"]], 0.0, listing, where), where
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where}: not a supervision of Lhotse ({error!r})") from error


def _cuts(listing: Path) -> Found:
    for row, where in objects_of(listing):
        kind = row.get("type", "MonoCut")
        if kind not in ("MonoCut", "MultiCut"):
            raise UserError(f"{where}: {row.get('id')} is a {kind} (expected a MonoCut or MultiCut, of one recording)")
        try:
            start, recording = _number(row["start"]), row["recording"]
            assert isinstance(recording, Mapping)
            said = row.get("supervisions") or [{**row, "start": 0.0}]  # without any, a cut is speech alone
            for one in said:
                yield _utterance({"channel": row["channel"], **one}, recording, start, listing, where), where
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where}: not a cut of Lhotse ({error!r})") from error


def _utterance(
    said: Mapping[str, Any], recording: Mapping[str, Any], start: float, listing: Path, where: str
) -> Recording:
    """Make what is said from ``said["start"]`` on behind ``start`` seconds of a recording."""
    if recording.get("transforms"):
        raise UserError(
            f"{where}: recording {recording['id']} is to be transformed (expected audio as it is in its file)"
        )
    file, channel = _file(said, recording, where)
    audio = Path(file) if Path(file).is_file() else listing.parent / file  # Lhotse's are from where it was run
    begin, seconds = max(0.0, start + _number(said["start"])), _number(said["duration"])
    text, speaker = said.get("text"), said.get("speaker")
    whole = begin == 0 and seconds >= _number(recording["duration"])
    return Recording(
        str(said["id"]),
        audio,
        None if text is None else str(text).strip(),
        None if speaker is None else str(speaker),
        begin,
        None if whole else seconds,
        channel,
    )


def _file(said: Mapping[str, Any], recording: Mapping[str, Any], where: str) -> tuple[str, int | None]:
    """Find the file of an utterance, and the channel in it; None where it has one alone or all are meant."""
    asked = said.get("channel", 0)
    channels = list(asked) if isinstance(asked, list) else [asked]
    sources = [source for source in recording["sources"] if set(channels) <= set(source["channels"])]
    if len(sources) != 1 or sources[0]["type"] != "file":
        kinds = ", ".join(sorted({str(source["type"]) for source in recording["sources"]}))
        raise UserError(f"{where}: channel {asked} of recording {recording['id']} is not in one file (but in: {kinds})")
    inside = list(sources[0]["channels"])
    return str(sources[0]["source"]), None if len(channels) > 1 or len(inside) == 1 else inside.index(channels[0])


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return float(value)
