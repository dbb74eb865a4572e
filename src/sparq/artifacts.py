"""Folders with provenance: fingerprints, manifests, and writing that is either whole or not there.

Every folder that SpARQ makes (a codebook, a vocabulary, a corpus, a model, a vocoder) holds a ``sparq.json`` that
says what it is, with which settings and from which inputs it was made. Its fingerprint is a hash of those, so two
parts that were not made for each other are told apart before they are used together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparq.errors import UserError

MANIFEST = "sparq.json"
FORMAT = 1


class ArtifactMismatchError(UserError):
    """Two parts were put together that were not made for each other."""


def _canonical(value: object) -> Any:
    """Reduce a value to JSON types, arrays and files to the hash of their bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(v) for v in value]
    if isinstance(value, Path):
        with value.open("rb") as file:
            return {"file": hashlib.file_digest(file, "sha256").hexdigest()}
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value)
        return {"array": hashlib.sha256(data.tobytes()).hexdigest(), "shape": data.shape, "dtype": str(data.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    message = f"cannot take the fingerprint of a {type(value).__name__}"
    raise TypeError(message)


def fingerprint(value: object) -> str:
    """Hash settings, arrays and files to 16 hexadecimal digits; equal content gives equal digits.

    Args:
        value: nested dataclasses, mappings, sequences, numbers, strings, NumPy arrays, and paths (whose bytes count).
    """
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance() -> dict[str, str]:
    """Say which command, commit and machine make something, and when (UTC)."""
    commit, python = "unknown", f"Python {platform.python_version()}"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).parent
        run = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        commit = run.stdout.strip() or "unknown"
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, {python}",
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder is, how it was made, and from what.

    Attributes:
        kind: "codebook", "vocabulary", "corpus", "speechlm", "vocoder", "stage:<name>".
        settings: JSON-able settings that made it.
        inputs: name of each input → its fingerprint.
        fingerprint: hash of kind, settings and inputs.
        made: command, commit, machine and date (not part of the fingerprint).
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    fingerprint: str
    made: Mapping[str, str]


def write_manifest(
    folder: Path, kind: str, settings: Mapping[str, Any] | None = None, inputs: Mapping[str, str] | None = None
) -> Manifest:
    """Write ``sparq.json`` into a folder and return what it says."""
    plain = json.loads(json.dumps(_canonical(settings or {})))
    known = dict(inputs or {})
    manifest = Manifest(
        kind=kind,
        settings=plain,
        inputs=known,
        fingerprint=fingerprint({"kind": kind, "settings": plain, "inputs": known}),
        made=provenance(),
    )
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(manifest)}, indent=2) + "\n"
    write_text(folder / MANIFEST, text)
    return manifest


def read_manifest(folder: Path, kind: str) -> Manifest:
    """Read ``sparq.json`` of a folder that must be of a kind.

    Raises:
        UserError: there is no such folder or manifest, it is damaged, or it is of another kind.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: not a SpARQ {kind} folder (there is no {MANIFEST} in it)")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**{f.name: data[f.name] for f in dataclasses.fields(Manifest)})
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged manifest ({error})") from error
    if manifest.kind != kind:
        raise UserError(f"{folder}: holds a {manifest.kind}, expected a {kind}")
    return manifest


def require_match(what: str, wanted: str, given: str) -> None:
    """Refuse two parts that were not made for each other.

    Raises:
        ArtifactMismatchError: naming both fingerprints.
    """
    if wanted != given:
        raise ArtifactMismatchError(f"{what} was made for {wanted}, but was given {given}: they do not belong together")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def share(folder: Path) -> None:
    """Give all files in a folder the permissions of a new file, 0666 without the umask."""
    umask = os.umask(0o077)  # there is no way to read it that does not set it
    os.umask(umask)
    for path in folder.rglob("*"):
        # safetensors lets nobody but the owner read what it writes.
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(PermissionError):  # a file system without permissions
                path.chmod(0o666 & ~umask)


def named_folder(path: Path) -> Path:
    """Give the place of a folder that is to be made: of a symbolic link the folder behind it, so that the link stays.

    Raises:
        UserError: it is the folder that this process works in, or the root: neither can be put in place by its name.
    """
    place = Path(path)
    if place.is_symlink() or place.name in ("", ".."):
        place = place.resolve()
    if not place.name or place.absolute() == Path.cwd():
        raise UserError(f"{path}: is in the way (expected a new folder's name; this is {place.absolute()})")
    return place


def is_free(folder: Path) -> bool:
    """Whether a folder can be put in place without loss: nothing has its name, or a folder with nothing in it."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def require_writable(path: Path) -> None:
    """Find out before the work that a file or folder can be made, by making another one, of which nothing is left.

    Raises:
        UserError: the folder around it, or the nearest one above that is there, takes none.
    """
    around = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=around, prefix="."):
            pass
    except OSError as error:
        told = f"no file can be made in {around}: {error.strerror}"
        raise UserError(f"{path}: cannot be written ({told})") from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` that takes its name when the block ends well.

    An older folder of that name is replaced only then; when the block raises, it stays and nothing else is left. Its
    files are as readable as any that the user makes.

    Raises:
        UserError: the name is none (:func:`named_folder`).
    """
    path = named_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        share(temporary)
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
