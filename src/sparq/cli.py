"""The command line: which commands there are, and how they end; what each takes and does is in :mod:`sparq.commands`.

Exit code 0 when it worked, 2 for what the user gave, 1 for what broke, 130 when it was stopped; errors are one line on
standard error.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from sparq.commands import (
    assets,
    bench,
    corpora,
    evaluation,
    finetuning,
    listening,
    models,
    outliers,
    paper,
    runs,
    speaking,
)
from sparq.errors import SparqError
from sparq.processes import is_first_process

# In the order of the help.
_COMMANDS = (
    runs.add_demo,
    runs.add_run,
    finetuning.add_finetune,
    models.add_adapt,
    models.add_quantize,
    evaluation.add_evaluate,
    outliers.add_outliers,
    listening.add_transcribe,
    speaking.add_speak,
    speaking.add_continue,
    corpora.add_corpus,
    corpora.add_voices,
    corpora.add_units,
    speaking.add_vocoder,
    models.add_export,
    models.add_deploy,
    assets.add_assets,
    paper.add_paper,
    bench.add_bench,
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} ({self.prog} --help tells more)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    _quiet_libraries()
    given = _parse(arguments)
    if not is_first_process():
        # Of the processes of a torchrun, the first one tells what comes out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        given.call(given)
        sys.stdout.flush()
    except SparqError as error:
        print(f"sparq: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"sparq: stopped{'; the same command goes on from here' if given.resumes else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who read the output has gone; what is still buffered must not be complained about at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if given.debug:
            raise
        text = " ".join(str(error).split())[:300]
        print(f"sparq: {type(error).__name__}: {text} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; settings may also stand behind options, where argparse would leave them over."""
    parser = _parser()
    given, left = parser.parse_known_args(arguments)
    if left and not (given.settings_anywhere and all("=" in text and text[0] != "-" for text in left)):
        settings = given.settings_anywhere and not any(text.startswith("-") for text in left)
        parser.error(f"unrecognized arguments: {' '.join(left)}{' (settings are KEY=VALUE)' * settings}")
    if left:
        given.settings += left
    return given


def _quiet_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # PEFT reads a property that transformers has given another name.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # PEFT imports it wherever it is installed; it then complains about a kernel that could not be fetched from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # So does transformers with torchao, which warns of GPU kernels that are not for this machine.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sparq", description="One language model that listens, speaks and writes.")
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error came from")
    made = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for add in _COMMANDS:
        add(made)
    return parser


if __name__ == "__main__":
    sys.exit(main())
