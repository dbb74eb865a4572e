"""What several commands take, and how they read and answer it: numbers, settings, a model, a search, JSON."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparq.errors import UserError

if TYPE_CHECKING:
    from sparq.language.generation import GenerationOptions
    from sparq.language.speech_lm import SpeechLM

Command = Callable[[argparse.Namespace], None]


def positive(text: str) -> int:
    """Read a whole number from 1 up."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} (expected a whole number ≥ 1)")
    return int(text)


def count(text: str) -> int:
    """Read a whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} (expected a whole number ≥ 0)")
    return int(text)


def add_command(made: Any, name: str, call: Command, text: str, *, as_json: bool = True, resumes: bool = False) -> Any:
    """Add a command, or a part of one, what calls it, and whether it goes on when it is given again after a stop."""
    command = made.add_parser(name, help=text, description=text)
    command.set_defaults(call=call, settings_anywhere=False, resumes=resumes)
    if as_json:
        command.add_argument("--json", action="store_true", help="print JSON")
    return command


def add_settings(command: Any, what: str) -> None:
    """Let settings be given, ``key=value``, also behind options."""
    command.add_argument("settings", nargs="*", default=[], metavar="KEY=VALUE", help=f"settings of {what}")
    command.set_defaults(settings_anywhere=True)


def add_model(command: Any) -> None:
    """Let a SpeechLM be named."""
    command.add_argument("--model", help="a SpeechLM folder, or the name of one that ships (default: speechlm-max)")


def add_overwrite(command: Any) -> None:
    """Let an output be replaced that is there already."""
    text = "replace what was made there with other settings or inputs"
    command.add_argument("--overwrite", action="store_true", help=text)


def add_device(command: Any) -> None:
    """Let it be said where the model computes."""
    command.add_argument("--device", default="cpu", help="where the model computes: cpu (default), cuda or cuda:1")


def add_prior(command: Any, default: str) -> None:
    """Let another language model be named that knows what people say."""
    text = (
        "a text language model that weighs transcripts: a folder, a hub name, smollm2-135m, auto (that one for models "
        f"that ship, where it is installed), or none (default {default})"
    )
    command.add_argument("--prior", metavar="MODEL", default=default, help=text)


def add_search(command: Any) -> None:
    """Let it be said how an answer is searched for."""
    text = (
        "width of the beam search, 1 for greedy (default: none, but to transcribe 4 in each view, or 8 in one, and 24 "
        "with a prior)"
    )
    command.add_argument("--beam", type=positive, help=text)
    command.add_argument("--temperature", type=float, help="sample instead of searching")
    command.add_argument("--top-p", type=float, help="sample from this share of the probability")
    command.add_argument("--seed", type=count, help="of the sampling (default 0)")


def read_settings(kind: Any, defaults: dict[str, Any], given: argparse.Namespace) -> Any:
    """Read the settings of a command, ``key=value``, over its defaults."""
    from sparq.schema import parse, with_overrides

    return parse(kind, with_overrides(defaults, given.settings), f"sparq {given.command}")


def load_model(given: argparse.Namespace) -> SpeechLM:
    """Load the SpeechLM that ``--model`` names, or the one that ships, with the prior that ``--prior`` names."""
    import sparq

    with starting():
        device, prior = getattr(given, "device", "cpu"), getattr(given, "prior", "none")
        return sparq.load(given.model, device=device, prior=prior)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Search for no garbage inside the block: of all that is imported and loaded, there is none.

    Python would go through it again and again, for a sixth of the time until a command is there (results/by_hand.json).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def model_folder(given: argparse.Namespace) -> Path:
    """Find the folder of the SpeechLM that ``--model`` names, or of the one that ships."""
    from sparq import assets

    return assets.model_folder(given.model)


def search_options(given: argparse.Namespace, usual: GenerationOptions | None = None) -> GenerationOptions | None:
    """Give the search that was asked for, or None.

    Args:
        given: what was asked for.
        usual: the sampling that there is else, if it is one, to which a seed goes.

    Raises:
        UserError: two things that do not go together.
    """
    from sparq.language.generation import GenerationOptions, beam_search

    if given.temperature is not None or given.top_p is not None:
        if given.beam is not None:
            raise UserError(f"--beam: {given.beam} (does not go with --temperature or --top-p, which sample)")
        asked = {"temperature": given.temperature, "top_p": given.top_p, "seed": given.seed}
        chosen: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return GenerationOptions(method="sample", **chosen)
    if given.seed is not None:
        if usual is None or given.beam is not None:
            raise UserError(f"--seed: {given.seed} (nothing is sampled here without --temperature or --top-p)")
        return dataclasses.replace(usual, seed=given.seed)
    return None if given.beam is None else beam_search(given.beam)


def print_json(value: object) -> None:
    """Print what a command found, for programs to read; what is no finite number is null, since JSON has none."""
    print(json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
