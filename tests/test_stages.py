from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sparq.artifacts import named_folder, new_folder
from sparq.errors import UserError
from sparq.stages import Stage, StageEvent, read_stage, run_stage

# A run in its own process: five files, each written whole, slowly, and counted in a log outside the stage.
CHILD = """
import os, sys, time
from pathlib import Path
from sparq.stages import Stage, run_stage

root, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def build(folder):
    for i in range(5):
        if not (folder / f"{i}.txt").exists():
            time.sleep(pause)
            (folder / "writing").write_text(str(i * i))
            (folder / "writing").rename(folder / f"{i}.txt")
            with log.open("a") as lines:
                print(i, file=lines)

if len(sys.argv) > 4:  # a worker that outlives its parent, as those of a process pool do
    worker = os.fork
    real = build
    def build(folder):
        if worker() == 0:
            time.sleep(60)
            os._exit(0)
        real(folder)

run_stage(root, Stage("work", {"files": 5}, {}, build))
"""


def child(root: Path, log: Path, pause: float, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(log), str(pause), *more],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for_lines(log: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1000):
        if log.exists() and len(log.read_text().split()) >= count:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError("the child did not get on")


class Recorder:
    """Builds one file, and remembers how often and what it was told."""

    def __init__(self):
        self.builds = 0
        self.events: list[StageEvent] = []

    def build(self, folder: Path) -> None:
        self.builds += 1
        (folder / "result.txt").write_text(f"build {self.builds}")

    def stage(self, inputs=None, **settings) -> Stage:
        return Stage("corpus", settings, inputs or {}, self.build)

    def run(self, root: Path, *, overwrite=True, **settings):
        return run_stage(root, self.stage(**settings), self.events.append, overwrite=overwrite)

    @property
    def states(self) -> list[str]:
        return [event.state for event in self.events]


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_complete_stage_is_skipped(tmp_path):
    recorder = Recorder()
    first = recorder.run(tmp_path, size=1)
    second = recorder.run(tmp_path, size=1)
    assert recorder.builds == 1
    assert recorder.states == ["started", "finished", "skipped"]
    assert first == second
    assert names(tmp_path) == ["corpus"]


@pytest.mark.parametrize("change", [{"size": 2}, {"size": 1, "inputs": {"codebook": "b"}}])
def test_other_settings_or_inputs_rebuild(tmp_path, change):
    recorder = Recorder()
    first = recorder.run(tmp_path, size=1, inputs={"codebook": "a"})
    second = recorder.run(tmp_path, **{"inputs": {"codebook": "a"}, **change})
    assert recorder.states == ["started", "finished", "rebuilt", "finished"]
    assert first.fingerprint != second.fingerprint
    assert (tmp_path / "corpus" / "result.txt").read_text() == "build 2"
    assert names(tmp_path) == ["corpus"]


def test_what_is_not_to_be_replaced_is_refused_before_the_work(tmp_path):
    recorder = Recorder()
    made = recorder.run(tmp_path, size=1, overwrite=False)
    with pytest.raises(UserError, match="corpus: was made with other settings or inputs; overwrite it, or choose"):
        recorder.run(tmp_path, size=2, overwrite=False)
    assert recorder.builds == 1
    assert read_stage(tmp_path / "corpus") == made
    assert recorder.run(tmp_path, size=1, overwrite=False) == made  # the same again is skipped
    assert names(tmp_path) == ["corpus"]
    assert recorder.run(tmp_path, size=2).fingerprint != made.fingerprint
    assert recorder.states == ["started", "finished", "skipped", "rebuilt", "finished"]


def test_old_result_stays_until_the_new_one_is_complete(tmp_path):
    recorder = Recorder()
    recorder.run(tmp_path, size=1)

    def fails(folder: Path) -> None:
        assert (tmp_path / "corpus" / "result.txt").read_text() == "build 1"
        (folder / "half").touch()
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run_stage(tmp_path, Stage("corpus", {"size": 2}, {}, fails))
    assert (tmp_path / "corpus" / "result.txt").read_text() == "build 1"
    recorder.run(tmp_path, size=1)
    assert recorder.states[-1] == "skipped"


def test_failed_work_is_handed_out_again(tmp_path):
    seen = []

    def build(folder: Path) -> None:
        seen.append(names(folder))
        (folder / "part").touch()
        if len(seen) == 1:
            raise KeyboardInterrupt

    events: list[StageEvent] = []
    stage = Stage("corpus", {}, {}, build)
    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, stage, events.append)
    assert not (tmp_path / "corpus").exists()
    run_stage(tmp_path, stage, events.append)
    assert seen == [[], ["part"]]
    assert [e.state for e in events] == ["started", "resumed", "finished"]


def test_bad_input_leaves_nothing_behind(tmp_path):
    def refuses(_: Path) -> None:
        raise UserError("text.tsv: line 3 has no tab")

    with pytest.raises(UserError, match=r"text\.tsv"):
        run_stage(tmp_path / "run", Stage("corpus", {}, {}, refuses))
    assert names(tmp_path) == []


def test_work_for_other_settings_is_neither_used_nor_kept(tmp_path):
    def half(folder: Path) -> None:
        (folder / "poison").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_stage(tmp_path, Stage("corpus", {"size": 1}, {}, half))
    recorder = Recorder()
    recorder.run(tmp_path, size=2)
    assert recorder.states == ["started", "finished"]
    assert names(tmp_path / "corpus") == ["result.txt", "stage.json"]
    assert names(tmp_path) == ["corpus"]


def test_unfinished_work_for_other_settings_is_kept_where_nothing_is_to_be_replaced(tmp_path):
    def half(folder: Path) -> None:
        (folder / "checkpoint").touch()
        raise RuntimeError

    recorder, long = Recorder(), Stage("corpus", {"size": 1}, {}, half)
    with pytest.raises(RuntimeError):
        run_stage(tmp_path, long, overwrite=False)
    recorder.run(tmp_path, size=2, overwrite=False)
    assert names(tmp_path / f".corpus.{long.fingerprint}.partial") == ["checkpoint"]
    recorder.run(tmp_path, size=1)
    assert recorder.states == ["started", "finished", "resumed", "finished"]
    assert names(tmp_path) == ["corpus"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_others_may_read_what_is_complete(tmp_path, umask, mode):
    """As the umask says, although safetensors writes for the owner alone."""

    def build(folder: Path) -> None:
        with new_folder(folder / "model") as made:
            save_file({"weight": torch.zeros(2)}, made / "model.safetensors")
        inner.append((folder / "model" / "model.safetensors").stat().st_mode & 0o777)
        save_file({"weight": torch.zeros(2)}, folder / "own.safetensors")

    inner: list[int] = []
    before = os.umask(umask)
    try:
        run_stage(tmp_path, Stage("work", {}, {}, build))
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} | set(inner) == {mode}


def test_killed_between_completion_and_renaming(tmp_path):
    recorder = Recorder()
    stage = recorder.stage(size=2)
    recorder.run(tmp_path, size=2)
    complete = tmp_path / f".corpus.{stage.fingerprint}.partial"
    (tmp_path / "corpus").rename(complete)
    recorder.run(tmp_path, size=2)
    assert recorder.builds == 1
    assert (tmp_path / "corpus" / "result.txt").exists()


def test_killed_between_the_two_renames(tmp_path):
    recorder = Recorder()
    recorder.run(tmp_path, size=1)
    (tmp_path / "corpus").rename(tmp_path / ".corpus.old")
    recorder.run(tmp_path, size=1)
    assert recorder.builds == 1
    assert names(tmp_path) == ["corpus"]


def test_a_folder_that_no_run_made_is_not_touched(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"corpus: is in the way"):
        Recorder().run(tmp_path, size=1)
    assert (tmp_path / "corpus" / "thesis.txt").exists()


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="run: cannot be made a folder"):
        Recorder().run(tmp_path / "run", size=1)


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "a/"])
def test_names_that_are_not_folder_names(name):
    with pytest.raises(UserError, match="not a name"):
        Stage(name, {}, {}, lambda _: None)


def test_record_says_how_it_was_made(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        clusters: int = 200

    source = tmp_path / "text.txt"
    source.write_text("a sentence")
    settings = {"units": Settings(), "source": source}
    manifest = run_stage(tmp_path / "run", Stage("units", settings, {"corpus": "c0ffee"}, lambda _: None))
    read = read_stage(tmp_path / "run" / "units")
    assert read == manifest
    assert read.settings == {"units": {"clusters": 200}, "source": str(source)}
    assert read.inputs == {"corpus": "c0ffee"}
    assert {"command", "commit", "machine", "date"} <= set(read.made)
    source.write_text("another sentence")
    assert Stage("units", settings, {"corpus": "c0ffee"}, lambda _: None).fingerprint != manifest.fingerprint


def test_a_stage_can_be_an_artifact_with_its_own_manifest(tmp_path):
    """An artifact's save() may replace the whole folder it is given."""

    def build(folder: Path) -> None:
        folder.rmdir()
        folder.mkdir()
        (folder / "sparq.json").write_text("{}")

    run_stage(tmp_path, Stage("speechlm", {}, {}, build))
    assert names(tmp_path / "speechlm") == ["sparq.json", "stage.json"]


@pytest.mark.parametrize("forks", [False, True])
def test_killed_run_is_taken_up_where_it_was(tmp_path, forks):
    root, log = tmp_path / "run", tmp_path / "log"
    process = child(root, log, 0.1, *(["fork"] if forks else []))
    wait_for_lines(log, 2, process)
    process.kill()  # the run itself; a worker of it lives on
    process.wait()
    assert not (root / "work").exists()
    before = log.read_text().split()
    try:
        again = child(root, log, 0)
        assert again.wait(timeout=30) == 0, again.stderr.read()
    finally:
        if forks:
            os.killpg(process.pid, signal.SIGKILL)
    after = log.read_text().split()
    # At most the one file that was being written when the run was killed is made twice.
    assert after[: len(before)] == before
    assert sorted(set(after)) == list("01234")
    assert len(after) <= 6
    assert [(root / "work" / f"{i}.txt").read_text() for i in range(5)] == ["0", "1", "4", "9", "16"]
    assert json.loads((root / "work" / "stage.json").read_text())["settings"] == {"files": 5}
    assert names(root) == ["work"]


def test_two_runs_do_not_write_the_same_stage(tmp_path):
    root, log = tmp_path / "run", tmp_path / "log"
    process = child(root, log, 0.1)
    wait_for_lines(log, 1, process)
    try:
        with pytest.raises(UserError, match=rf"work: process {process.pid} is working on it"):
            run_stage(root, Stage("work", {"files": 5}, {}, lambda _: pytest.fail("built twice")))
        run_stage(root, Stage("other", {}, {}, lambda _: None))  # another stage of the same run is free
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
    run_stage(root, Stage("work", {"files": 5}, {}, lambda _: pytest.fail("built twice")))


def test_a_complete_stage_is_used_while_another_run_makes_it_anew(tmp_path):
    """Runs side by side share stages: finding one complete takes no lock."""
    root, log = tmp_path / "run", tmp_path / "log"
    old = Stage("work", {"files": 4}, {}, lambda folder: (folder / "result.txt").write_text("old"))
    run_stage(root, old)
    process = child(root, log, 0.1)
    wait_for_lines(log, 1, process)
    try:
        events: list[StageEvent] = []
        run_stage(root, old, events.append)
        assert [event.state for event in events] == ["skipped"]
        assert (root / "work" / "result.txt").read_text() == "old"
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()


def test_further_processes_wait_for_the_first_and_join_in_its_work(tmp_path, monkeypatch):
    """As ``torchrun`` starts them: each knows its RANK; the first one's work here needs the other's."""
    joined = threading.Event()

    def build(folder):
        assert joined.wait(timeout=30)
        (folder / "made.txt").write_text("whole")

    def first():
        time.sleep(0.5)  # the other looks before there is anything
        for stage in (alone, shared):
            run_stage(tmp_path, stage)

    alone = Stage("alone", {}, {}, lambda folder: (folder / "made.txt").write_text("by one"))
    shared = Stage("shared", {}, {}, build, join=lambda folder: joined.set())
    monkeypatch.setattr(
        "sparq.stages.is_first_process", lambda: threading.current_thread() is not threading.main_thread()
    )
    thread = threading.Thread(target=first)
    thread.start()
    for stage in (alone, shared):
        assert run_stage(tmp_path, stage).fingerprint == stage.fingerprint
        assert (tmp_path / stage.name / "made.txt").is_file()
    thread.join()
    joined.clear()
    assert run_stage(tmp_path, shared).fingerprint == shared.fingerprint
    assert not joined.is_set()  # what is complete is not joined in


@pytest.mark.parametrize("name", [".hidden", "a b", "größer", "a[1]*"])
def test_names_that_a_user_may_give(tmp_path, name):
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_stage(tmp_path, Stage(name, {"size": 1}, {}, fails))
    (tmp_path / name).mkdir()  # where nothing is, nothing is lost
    run_stage(tmp_path, Stage(name, {"size": 2}, {}, lambda folder: (folder / "made.txt").touch()))
    assert names(tmp_path) == [name]
    assert names(tmp_path / name) == ["made.txt", "stage.json"]


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    for text in ("first", "second"):
        with new_folder(tmp_path / "link") as made:
            (made / "made.txt").write_text(text)
        assert (tmp_path / "disk" / "model" / "made.txt").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert (names(tmp_path), names(tmp_path / "disk")) == (["disk", "link"], ["model"])
    monkeypatch.chdir(tmp_path / "link")
    for name in (".", "/", str(tmp_path / "link"), ""):
        with pytest.raises(UserError, match=r"is in the way .expected a new folder's name"):
            named_folder(Path(name))
    assert named_folder(Path("new")) == Path("new")
    assert named_folder(Path("..")) == tmp_path / "disk"
