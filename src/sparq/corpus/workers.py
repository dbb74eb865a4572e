"""Work spread over processes that start afresh, compute on one thread each, and end with the one that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Self, TypeVar

from threadpoolctl import threadpool_limits

from sparq.errors import SparqError

Task = TypeVar("Task")
Result = TypeVar("Result")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Workers:
    """Processes that are started when they are first needed and keep the models they load until the block ends.

    Args:
        processes: how many; 1 works in this process.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                for process in multiprocessing.active_children():  # which see no Ctrl-C
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def each(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield the results of a function for all tasks, as they come.

        Args:
            function: at the top of a module, so that other processes find it.
            tasks: what it is called with.

        Raises:
            SparqError: a process was killed from outside, usually for want of memory.
        """
        if self.processes == 1 or len(tasks) <= 1:
            with threadpool_limits(1):
                yield from map(function, tasks)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.processes, context, initializer=_end_with_parent)
        try:
            with _one_thread_each(), _interrupts_held_back():
                futures = [self._pool.submit(function, task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise SparqError("a worker process died (out of memory?); the same command goes on where it was") from error


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Have processes that are started meanwhile compute on one thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Have processes that are started meanwhile see no Ctrl-C, which would end them in the middle of their imports.

    Here it comes after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, even by ``kill -9``."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
