"""What the command that makes a corpus does, and what ``sparq run --check`` says."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from sparq.commands import print_json, read_settings
from sparq.recipe import Recipe


def corpus(given: argparse.Namespace) -> None:
    """Make a corpus."""
    from sparq.config import CorpusConfig
    from sparq.corpus.build import build_corpus
    from sparq.corpus.codebook import load_codebook

    same = {name: getattr(given, name) for name in ("kind", "layout", "parts", "held_out", "limit", "keep_audio")}
    same |= {"voices": given.voice} if given.voice else {}
    sources = [{"path": path, **same} for path in given.paths]
    defaults: dict[str, Any] = {"sources": sources, "processes": given.processes}
    if given.codebook:
        book = load_codebook(given.codebook)
        defaults |= {
            "units": {"name": given.codebook},
            "encoder": {"name": book.encoder_name, "layers": list(book.layers)},
        }
    made = build_corpus(read_settings(CorpusConfig, defaults, given), Path(given.output), quiet=given.json)
    if given.json:
        print_json(made.statistics)
    else:
        print(f"{given.output}: {made.summary}")


def check(recipe: Recipe, *, as_json: bool = False) -> None:
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
