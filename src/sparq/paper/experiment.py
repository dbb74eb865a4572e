"""Measuring a table: every cell is adapted, quantised and scored for every seed, here or on a Ray cluster.

Everything is a stage (:mod:`sparq.stages`) of one folder for each scale, so what is complete is skipped, what was
killed goes on, and tables share what they have in common::

    runs/paper-demo/corpus                               of all cells
    runs/paper-demo/lora-256-s0-max/speechlm             adapted by LoRA of the paper's rank 256, seed 0, max-shift
    runs/paper-demo/full-s1-zero-W4A4-omniquant/speechlm
    runs/paper-demo/scores-full-s1-zero-W4A4-omniquant
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparq.errors import UserError
from sparq.making import Watcher
from sparq.paper.grid import Cell
from sparq.paper.scale import Scale
from sparq.pipeline import RESULT, Run


@dataclasses.dataclass(frozen=True)
class Job:
    """One piece of work; jobs of a wave do not wait for each other.

    Attributes:
        scale: at which size.
        cell: the model.
        seed: of its adaptation, and of a rotation.
        overrides: ``key=value`` settings of the user.
        until: "shared" (corpus, vocabulary and vocoder are made), "adapted" or "scored".
    """

    scale: Scale
    cell: Cell
    seed: int
    overrides: tuple[str, ...]
    until: str

    def run(self, watcher: Watcher | None = None) -> Mapping[str, Any] | None:
        """Do it; give what was measured, of a job until "scored"."""
        run, cell = open_run(self.scale, self.cell, self.seed, self.overrides, watcher), self.cell
        if self.until == "shared":
            assert run.vocabulary_manifest
            assert run.vocoder_manifest
            return None
        if self.until == "adapted":
            run.adapted(cell.sink)
            return None
        row = None if cell.row is None else dataclasses.replace(cell.row, seed=self.seed)
        folder = run.folder / run.scored(cell.sink, row).kind.removeprefix("stage:")
        measured: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return measured


Engine = Callable[[Sequence[Job]], list[Mapping[str, Any] | None]]
"""Does a wave of jobs and gives their results in the same order."""


def open_run(scale: Scale, cell: Cell, seed: int, overrides: Sequence[str] = (), watcher: Watcher | None = None) -> Run:
    """Open the run that a cell's stages belong to."""
    recipe = scale.cell(cell.adaptation, seed, overrides)
    return Run(recipe, watcher, variant=f"{cell.adaptation.name}-s{seed}")


def measure(
    scale: Scale, cells: Iterable[Cell], seeds: int, overrides: Sequence[str], engine: Engine
) -> dict[Cell, list[Mapping[str, Any]]]:
    """Adapt, quantise and score cells, and the baselines of their drops.

    Args:
        scale: at which size.
        cells: what to measure; a cell that is given twice is measured once.
        seeds: how many seeds, 0 and up.
        overrides: ``key=value`` settings of every cell.
        engine: does the jobs.

    Returns:
        Cell → for each seed what :func:`sparq.evaluation.scoring.assess` found.

    Raises:
        UserError: a setting is wrong, or a part cannot be had.
    """
    wanted = list(dict.fromkeys(one for cell in cells for one in (cell.baseline, cell)))
    adapt(scale, wanted, seeds, overrides, engine)
    last = [Job(scale, cell, seed, tuple(overrides), "scored") for seed in range(seeds) for cell in wanted]
    found: dict[Cell, list[Mapping[str, Any]]] = {cell: [] for cell in wanted}
    for job, result in zip(last, engine(last), strict=True):
        assert result is not None
        found[job.cell].append(result)
    return found


def adapt(scale: Scale, cells: Iterable[Cell], seeds: int, overrides: Sequence[str], engine: Engine) -> None:
    """Adapt what cells have in common with each other once, after checking all of them; see :func:`measure`."""
    adapted = list(dict.fromkeys(Cell(cell.sink, cell.adaptation) for cell in cells))
    given = tuple(overrides)
    for cell in {cell.adaptation: cell for cell in adapted}.values():
        open_run(scale, cell, 0, given).check()
    engine([Job(scale, adapted[0], 0, given, "shared")])  # alone: every other job reads what it makes
    engine([Job(scale, cell, seed, given, "adapted") for seed in range(seeds) for cell in adapted])


def in_turn(watcher: Watcher) -> Engine:
    """Do jobs one after another in this process."""
    return lambda jobs: [job.run(watcher) for job in jobs]


def on_ray(address: str, watcher: Watcher) -> Engine:
    """Do the jobs of a wave side by side on a Ray cluster, whose machines share the folder of the run.

    Args:
        address: of the cluster, such as "auto" or "ray://head:10001", or "local" for this machine's cores.
        watcher: told which jobs are done.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray: Ray is not installed (pip install 'sparq[ray]')") from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray: {address}: no cluster there ({' '.join(str(error).split())[:120]})") from error
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    remote = ray.remote(num_gpus=gpus, max_retries=0)(_do_in)
    here = str(Path.cwd())

    def engine(jobs: Sequence[Job]) -> list[Mapping[str, Any] | None]:
        waiting = {remote.remote(here, job): index for index, job in enumerate(jobs)}
        results: list[Mapping[str, Any] | None] = [None] * len(jobs)
        while waiting:
            (done, *_), _rest = ray.wait(list(waiting), num_returns=1)
            index = waiting.pop(done)
            with _user_errors(ray.exceptions.RayTaskError):
                results[index] = ray.get(done)
            watcher.note(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs")
        return results

    return engine


def _do_in(folder: str, job: Job) -> Mapping[str, Any] | None:
    """Do a job where the driver runs: paths in recipes are taken from there."""
    os.chdir(folder)
    return job.run()


@contextlib.contextmanager
def _user_errors(wrapped: type[Exception]) -> Any:
    """Take a user's error out of what Ray wraps it in."""
    try:
        yield
    except wrapped as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, UserError) else error from error
