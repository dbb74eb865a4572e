"""Worker processes that are stopped together with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

PROGRAM = r"""
import os, signal, sys, time
from sparq.corpus.workers import Workers

if __name__ != "__main__":  # a worker, which takes its time to start
    os.write(1, b"starting\n")  # whole, beside the other worker's
    time.sleep(1)

def work(task):
    return task

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, it is ignored
    try:
        with Workers(2) as workers:
            list(workers.each(work, [1, 2]))
    except KeyboardInterrupt:
        sys.exit("stopped")
"""


def test_workers_that_are_still_starting_end_without_a_word(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    begun = subprocess.Popen(
        [sys.executable, program], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert begun.stdout.readline() == "starting\n"
        os.killpg(begun.pid, signal.SIGINT)  # as Ctrl-C does
        out, err = begun.communicate(timeout=30)
    finally:
        if begun.poll() is None:
            os.killpg(begun.pid, signal.SIGKILL)
            begun.communicate()
    assert (begun.returncode, out.replace("starting\n", ""), err) == (1, "", "stopped\n")
