"""Work cut into parts, each a file that is whole or not there, with a progress bar in hours of audio per hour."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sparq.corpus.plan import Item
from sparq.corpus.workers import Workers


@dataclasses.dataclass(frozen=True)
class Part:
    """A file to be made.

    Attributes:
        path: the file; when it is there, it is finished.
        items: what it is made of.
    """

    path: Path
    items: tuple[Item, ...]

    def write(self, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill a hidden file, which then takes the name."""
        temporary = self.path.with_name(f".{os.getpid()}.{self.path.name}")
        write(temporary)
        temporary.replace(self.path)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Hours of audio that were made, and hours that it took."""

    audio: float
    work: float

    @property
    def rate(self) -> float:
        """Hours of audio per hour of work."""
        return self.audio / self.work if self.work else 0.0


def make_parts(
    make: Callable[[Part], tuple[Part, float]],
    parts: Sequence[Part],
    workers: Workers,
    label: str,
    *,
    quiet: bool = False,
) -> Measured:
    """Make the parts that are not there yet.

    Args:
        make: writes a part and returns it, with the seconds of audio that are in it.
        parts: all of them.
        workers: who make them.
        label: stands before the progress bar.
        quiet: without the bar.
    """
    missing = [part for part in parts if not part.path.exists()]
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%  {task.fields[hours]:.2f} h of audio, {task.fields[rate]:.0f} h per hour"),
        TimeRemainingColumn(),
    )
    begun = time.monotonic()
    audio = 0.0

    def measured() -> Measured:
        return Measured(audio / 3600, (time.monotonic() - begun) / 3600)

    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        total, left = (sum(len(part.items) for part in some) for some in (parts, missing))
        task = progress.add_task(label, total=total, completed=total - left, hours=0.0, rate=0.0)
        for part, seconds in workers.each(make, missing):
            audio += seconds
            now = measured()
            progress.update(task, advance=len(part.items), hours=now.audio, rate=now.rate)
        return measured()
