"""What is drawn while recordings are written down, and told of stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparq.progress import ListeningBar, Terminal
from sparq.stages import StageEvent


def test_speed_leaves_out_what_was_before_the_first_segment(monkeypatch):
    now = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr("sparq.progress.time.monotonic", lambda: next(now))
    bar = ListeningBar(3, 60.0, quiet=True)
    shown = []
    for files, seconds in ((0, 10.0), (0, 20.0), (1, 40.0)):
        bar._bar.update = lambda _, **told: shown.append(told)
        bar.move(files, seconds)
    assert [told["speed"] for told in shown] == ["", "5.0 × real time", "7.5 × real time"]
    assert shown[-1]["files"] == "1 of 3"
    assert shown[-1]["completed"] == 40.0


@pytest.mark.parametrize("error", [False, True])
def test_lines_go_where_they_belong(capsys, error):
    with ListeningBar(1, 0.0) as bar:
        bar.say("a line", error=error)
    out, err = capsys.readouterr()
    assert (err, out) == (("a line\n", "") if error else ("", "a line\n"))


def test_folders_are_told_whole_whatever_they_are_called(capsys):
    folder = Path("/recordings", "of a [bold] night", *["far-away"] * 20)
    with Terminal() as terminal:
        terminal.stage(StageEvent("corpus", "finished", folder, 3.0))
        terminal.note(f"reading {folder}")
    assert capsys.readouterr().err == f" finished  {folder} in 3 s\n           reading {folder} ...\n"
