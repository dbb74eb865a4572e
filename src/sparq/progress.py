"""What a person sees of a run on the terminal: stages as they come and go, a bar while a model trains, a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sparq.processes import is_first_process
from sparq.stages import StageEvent

COLUMNS = {
    "text_perplexity": "text\nperplexity",
    "speech_perplexity": "speech\nperplexity",
    "asr_wer": "ASR WER\n%",
    "tts_wer": "TTS WER\n%",
    "average_drop": "average\ndrop %",
    "maximum_infinity_norm": "maximum\ninfinity norm",
    "average_kurtosis": "average\nkurtosis",
}


class Terminal:
    """Draws on standard error, so that standard output holds results alone; ``quiet`` draws nothing.

    Of the processes of a ``torchrun``, the first one draws.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet or not is_first_process(), highlight=False)
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.fields[steps]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self._console,
            transient=True,
        )
        self._task: Any = None
        self._first = 0, 0.0  # step and time at which the bar appeared

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def stage(self, event: StageEvent) -> None:
        """Tell of a stage that is skipped, begun or finished."""
        self._stop()
        took = f" in {event.seconds:.0f} s" if event.state == "finished" else ""
        self._console.print(f"{event.state:>9}  {event.folder}{took}", markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Tell what is being done inside a stage."""
        self._console.print(f"{'':>9}  {text} ...", style="dim", markup=False, soft_wrap=True)

    def training(self, step: int, share: float, logged: Mapping[str, float]) -> None:
        """Move the bar of a training to its share that is done, 0 to 1."""
        now = time.monotonic()
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("training", total=1.0, steps="", loss="")
            self._first = step, now
        steps, seconds = step - self._first[0], now - self._first[1]
        speed = f", {steps / seconds:.2f}/s" if steps else ""
        loss = f"loss {logged['loss']:.3f}" if "loss" in logged else ""
        self._bar.update(self._task, completed=share, steps=f"step {step}{speed}", loss=loss)

    def _stop(self) -> None:
        if self._task is not None:
            self._bar.stop()
            self._bar.remove_task(self._task)
            self._task = None

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print the scores of a run on standard output."""
        table = Table(title="Scores on held-out sentences (quantisation simulated); lower is better")
        table.add_column("attention")
        table.add_column("bits")
        table.add_column("method")
        for heading in COLUMNS.values():
            table.add_column(heading, justify="right")
        before = None
        for row in rows:
            if before not in (None, row["sink"]):
                table.add_section()
            before = row["sink"]
            numbers = ["–" if row[name] is None else f"{row[name]:,.2f}" for name in COLUMNS]
            table.add_row(row["sink"], row["bits"], row["method"] or "–", *numbers)
        Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


class ListeningBar:
    """How far recordings are written down, on standard error: files, speed, time left; ``quiet`` draws nothing.

    Args:
        files: how many there are.
        seconds: that they last together, as far as is known.
    """

    def __init__(self, files: int, seconds: float, *, quiet: bool = False) -> None:
        self._files = files
        self._shown = sys.stderr.isatty() and not quiet
        self._bar = Progress(
            TextColumn("  {task.fields[files]}"),
            BarColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True, highlight=False),
            transient=True,
            # Otherwise results would be written to standard error, where the bar is.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=seconds or None, files=f"0 of {files}", speed="")
        self._first: tuple[float, float] | None = None  # seconds of sound, and the time at which they were done

    def __enter__(self) -> Self:
        if self._shown:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._bar.stop()

    def move(self, files: int, seconds: float) -> None:
        """Say how many files are done, and how many seconds of sound."""
        now = time.monotonic()
        # Loading the model comes before the first of them, and is no measure of what is to come.
        before, begun = self._first = self._first or (seconds, now)
        speed = f"{(seconds - before) / (now - begun):.1f} × real time" if seconds > before else ""
        self._bar.update(self._task, completed=seconds, files=f"{files} of {self._files}", speed=speed)

    def say(self, line: str, *, error: bool = False) -> None:
        """Print a line without spoiling the bar."""
        if self._shown:
            self._bar.stop()
        print(line, file=sys.stderr if error else sys.stdout, flush=True)
        if self._shown:
            self._bar.start()
