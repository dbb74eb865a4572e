"""Measure tables of the paper on a GPU, a few minutes at a call.

    python gpu/paper_grid.py 2 8 --scale smollm2 --corpus corpus --model SmolLM2-135M-Instruct.Q4_1.gguf \
        --state /tmp/grid --minutes 9

Call it again with the same arguments until it says that it is done: what is complete is skipped, and training goes on
from its last checkpoint under ``--state``, which lies outside the working tree. The corpus is made at home and needs no
audio. ``KEY=VALUE`` at the end changes every model, such as ``adaptation.steps=2000``. The tables that are finished are
left as JSON in ``--out`` (default ``$OUT``); the models stay.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from train_smollm2 import plain_model

ENDING = 20  # seconds that a killed table has to stop


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="1 to 11, G.1, figure3, figure4; then KEY=VALUE")
    parser.add_argument("--scale", default="smollm2")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus folder, built without --keep-audio")
    parser.add_argument("--model", type=Path, required=True, help="a transformers folder, or a .gguf file")
    parser.add_argument("--state", type=Path, required=True, help="folder for all that later calls need")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder for results (default $OUT)")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call (default 9)")
    given = parser.parse_intermixed_args()
    if given.out is None:
        parser.error("--out: missing ($OUT is not set)")
    return given


def main() -> int:
    given = arguments()
    ends = time.monotonic() + 60 * given.minutes
    given.state.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = [one for one in given.tables if "=" in one]
    run = given.state / "run"
    settings += [f"corpus.name={given.corpus.resolve()}", f"output={run.resolve()}"]
    settings.append(f"model.name={plain_model(given.model, given.state).resolve()}")
    for table in (one for one in given.tables if "=" not in one):
        command = [sys.executable, "-m", "sparq.cli", "paper", "run", table, "--scale", given.scale]
        command += ["--seeds", str(given.seeds), *settings]
        try:
            code = subprocess.run(command, timeout=max(1, ends - time.monotonic() - ENDING), check=False).returncode
        except subprocess.TimeoutExpired:
            print(f"table {table}: call again with the same arguments")
            return 0
        if code:
            return code
        for path in run.glob("*.json"):
            shutil.copy(path, given.out)
    print("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
