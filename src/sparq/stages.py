"""Stages: each a folder that is complete or not there, skipped when done and gone on with when killed.

A stage is known by a fingerprint of its name, settings and inputs. Its work is done in the hidden folder
``root/.NAME.FINGERPRINT.partial``, which takes the name ``root/NAME`` by one rename when it is complete, so that

- a complete stage of the same fingerprint is skipped;
- work that was killed is found again by its fingerprint, and handed to ``build`` once more, which goes on from what
  it finds there;
- changed settings or inputs have another fingerprint, so they begin anew, and the old folder stays until then; where
  it is not to be replaced, they are refused.

Under ``torchrun`` the first process makes the folders. The others wait, and take part where a stage says how.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from sparq.artifacts import Manifest, fingerprint, is_free, provenance, share, write_text
from sparq.errors import UserError
from sparq.processes import is_first_process

_GLANCE = 0.2  # seconds between two looks at what another process makes
RECORD = "stage.json"  # not the name of an artifact's manifest: a stage's folder may be an artifact itself
State = Literal["skipped", "started", "resumed", "rebuilt", "finished"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: the name of its folder.
        settings: everything that decides what comes out, as :func:`sparq.artifacts.fingerprint` takes it.
        inputs: name of each input → its fingerprint, usually that of the manifest of the stage before.
        build: does the work inside the folder it is given. The folder is empty the first time; after a kill it holds
            what the last try left, so files that stand for finished work must be written whole.
        join: what the further processes of a ``torchrun`` do in that folder while the first one builds; None lets them
            wait for it.
    """

    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    build: Callable[[Path], None]
    join: Callable[[Path], object] | None = None

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name or self.name in ("", ".."):
            raise UserError(f"stage {self.name!r}: not a name (expected that of a folder)")

    @property
    def kind(self) -> str:
        """The kind that its manifest has."""
        return f"stage:{self.name}"

    @property
    def fingerprint(self) -> str:
        """The hash of its name, settings and inputs."""
        return fingerprint({"kind": self.kind, "settings": self.settings, "inputs": self.inputs})


@dataclasses.dataclass(frozen=True)
class StageEvent:
    """What happens to a stage.

    Attributes:
        name: of the stage.
        state: "skipped" (complete), "started" (new), "resumed" (killed before), "rebuilt" (other settings or inputs
            than the complete folder has), and "finished" after the last three.
        folder: where its result is, or will be.
        seconds: how long the work took, for "finished".
    """

    name: str
    state: State
    folder: Path
    seconds: float = 0.0


def run_stage(
    root: Path, stage: Stage, on_event: Callable[[StageEvent], None] = lambda _: None, *, overwrite: bool = True
) -> Manifest:
    """Make a stage's folder complete, doing only what is not done yet.

    Args:
        root: folder of the run; the stage's is ``root / stage.name``.
        stage: what to do.
        on_event: is told when the stage is skipped, begun and finished.
        overwrite: whether a folder of other settings or inputs is replaced, and unfinished work for them removed.

    Returns:
        The manifest of the complete stage; its fingerprint is the input of stages after it.

    Raises:
        UserError: another process is at work on this stage, something that no run made has the folder's name, or what
            a run made is not to be replaced.
    """
    root = Path(root)
    folder = root / stage.name
    wanted = stage.fingerprint
    if not is_first_process():
        return _join_stage(folder, _unfinished(folder, wanted), stage)
    # A complete stage is not locked, so that runs side by side may use it at once; a folder gets its name when it is.
    complete = read_stage(folder)
    if complete is not None and complete.fingerprint == wanted:
        on_event(StageEvent(stage.name, "skipped", folder))
        return complete
    made_root = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: cannot be made a folder ({error.strerror})") from error
    try:
        with _only_one(root / f".{stage.name}.lock", folder):
            _mend(folder)
            done = read_stage(folder)
            if done is not None and done.fingerprint == wanted:
                on_event(StageEvent(stage.name, "skipped", folder))
                return done
            require_free(folder)
            if not overwrite:
                require_same(folder, stage)
            work = _unfinished(folder, wanted)
            state: State = "resumed" if work.exists() else "started" if done is None else "rebuilt"
            on_event(StageEvent(stage.name, state, folder))
            begun = time.monotonic()
            manifest = _build(stage, work)
            _put_in_place(work, folder)
            if overwrite:
                _forget_others(folder)
            on_event(StageEvent(stage.name, "finished", folder, time.monotonic() - begun))
            return manifest
    finally:
        if made_root:
            with contextlib.suppress(OSError):
                root.rmdir()  # only when nothing was made in it


def read_stage(folder: Path) -> Manifest | None:
    """Read the record of a complete stage; None when the folder is not one."""
    try:
        data = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return Manifest(**data)
    except (OSError, ValueError, TypeError):
        return None


def require_free(folder: Path) -> None:
    """Refuse to replace what no run made; a folder with nothing in it may be.

    Raises:
        UserError: something else has the name.
    """
    if not is_free(folder) and read_stage(folder) is None:
        raise UserError(f"{folder}: is in the way (it has no {RECORD}, so no run made it; move it elsewhere)")


def require_same(folder: Path, stage: Stage) -> None:
    """Refuse to replace what was made with other settings or inputs.

    Raises:
        UserError: the folder is a complete stage of another fingerprint.
    """
    done = read_stage(folder)
    if done is not None and done.fingerprint != stage.fingerprint:
        raise UserError(f"{folder}: was made with other settings or inputs; overwrite it, or choose another name")


def _unfinished(folder: Path, wanted: str) -> Path:
    return folder.with_name(f".{folder.name}.{wanted}.partial")


def _join_stage(folder: Path, work: Path, stage: Stage) -> Manifest:
    """Wait until the first process has made the folder, taking part in the work where there is a part to take."""
    join = stage.join
    while True:
        done = read_stage(folder)
        if done is not None and done.fingerprint == stage.fingerprint:
            return done
        if join is not None and work.is_dir() and read_stage(work) is None:
            join(work)
            join = None
        time.sleep(_GLANCE)


def _build(stage: Stage, work: Path) -> Manifest:
    """Do what is left of the work, and record that it is complete."""
    done = read_stage(work)
    if done is not None:
        return done  # killed between its completion and its renaming
    work.mkdir(exist_ok=True)
    try:
        stage.build(work)
    except BaseException:
        with contextlib.suppress(OSError):
            work.rmdir()  # only when there is nothing to go on from
        raise
    plain = json.loads(json.dumps(dict(stage.settings), default=_plain))
    manifest = Manifest(stage.kind, plain, dict(stage.inputs), stage.fingerprint, provenance())
    write_text(work / RECORD, json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")
    return manifest


def _plain(value: Any) -> Any:
    """Show settings that JSON has no type for in the record."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def _put_in_place(work: Path, folder: Path) -> None:
    """Give complete work its name; the older folder goes."""
    share(work)
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _forget_others(folder: Path) -> None:
    """Remove unfinished work for other settings."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 16}.partial"):
        shutil.rmtree(left, ignore_errors=True)


def _mend(folder: Path) -> None:
    """Undo what a kill between the two renames left: the older folder gets its name back."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _only_one(lock: Path, folder: Path) -> Iterator[None]:
    """Hold a lock file, so that one process at a time works on a folder.

    A record lock belongs to the process and not to its children, and the system drops it when the process dies: what
    a killed run left is taken over at once, even while workers that it had forked are still there.

    Raises:
        UserError: another process holds it, or it cannot be made.
    """
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({lock}: {error.strerror})") from error
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            raise UserError(
                f"{folder}: process {holder or 'unknown'} is working on it; wait for it or end it"
            ) from error
        try:
            if lock.stat().st_ino == os.fstat(handle).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(handle)  # the one who held it has removed it meanwhile
    try:
        os.truncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)
