"""Runs of recipes: ``sparq demo``, ``sparq run``, and what ``--check`` says."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from sparq.commands.arguments import add_command, add_settings, print_json

if TYPE_CHECKING:
    from sparq.recipe import Recipe


def add_demo(made: Any) -> None:
    """Declare ``sparq demo``."""
    text = "Adapt, quantise and score three attention variants; writes runs/demo/report.html"
    add_settings(add_command(made, "demo", demo, text, resumes=True), "the demo recipe")


def demo(given: argparse.Namespace) -> None:
    """Run the recipe "demo"."""
    given.recipe, given.check = "demo", False
    run(given)


def add_run(made: Any) -> None:
    """Declare ``sparq run``."""
    command = add_command(made, "run", run, "Run a recipe: a shipped one by name, or a YAML file", resumes=True)
    command.add_argument("recipe")
    command.add_argument("--check", action="store_true", help="say what would be read and made, and make nothing")
    add_settings(command, "the recipe")


def run(given: argparse.Namespace) -> None:
    """Run a recipe, and show its table."""
    from sparq.recipe import load_recipe

    recipe = load_recipe(given.recipe, given.settings)  # before what takes seconds to import
    if given.check:
        _check(recipe, as_json=given.json)
        return

    from sparq.making import Watcher
    from sparq.paper.summary import finish
    from sparq.pipeline import Run
    from sparq.processes import is_first_process
    from sparq.progress import Terminal

    if not is_first_process():
        beside = Run(recipe)
        for sink in recipe.attention.sinks:
            beside.adapted(sink)
        return
    with Terminal(quiet=given.json) as terminal:
        watcher = Watcher(terminal.stage, terminal.training, terminal.note)
        rows, report = finish(recipe, watcher, quiet=given.json)
    if given.json:
        print_json({"rows": rows, "report": str(report)})
        return
    terminal.table(rows)
    print(f"report: {report}")


def _check(recipe: Recipe, *, as_json: bool = False) -> None:
    """Print how many utterances of each source a recipe would use, and which models it would make.

    Raises:
        UserError: a corpus or a ready-made part is missing, or two models would have one name.
    """
    from sparq.corpus.plan import plan_corpus
    from sparq.pipeline import Run

    items = () if recipe.corpus.name is not None else plan_corpus(recipe.corpus).items
    run = Run(recipe)
    run.check()
    counts = Counter((item.source, item.split) for item in items)
    sources = {name: {split: counts[name, split] for split in ("train", "held_out")} for name, _ in counts}
    models = [run.name(sink, row) for sink, row in run.models()]
    if as_json:
        print_json({"sources": sources, "models": models, "output": str(recipe.folder)})
        return
    for name, told in sources.items():
        print(f"{name:28}{told['train']:>10,} to train on{told['held_out']:>10,} held out")
    print(f"{recipe.folder}: {', '.join(models)}")
