"""What the command that makes a corpus does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparq.commands import print_json, read_settings


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
        defaults |= {"units": {"name": given.codebook}, "encoder": {"name": book.encoder_name, "layer": book.layer}}
    made = build_corpus(read_settings(CorpusConfig, defaults, given), Path(given.output), quiet=given.json)
    if given.json:
        print_json(made.statistics)
    else:
        print(f"{given.output}: {made.summary}")
