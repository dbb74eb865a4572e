"""Train one new model with each optimizer on the same batches: what it has learnt, and the outliers it has grown.

    python benchmarks/optimizers.py runs/small-trunk/corpus --steps 300 adam=2e-3 adamw=2e-3 muon=4e-3 \
        --output results/optimizers.json

The recipe gives the model, the batches and everything else about the training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from sparq.adaptation.start import new_model
from sparq.adaptation.training import adapt
from sparq.artifacts import provenance, write_text
from sparq.attention import install
from sparq.corpus.corpus import Corpus
from sparq.evaluation.scoring import live_measure
from sparq.language.vocabulary import load_vocabulary
from sparq.making import example_stream, ready_made
from sparq.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("rates", nargs="+", metavar="OPTIMIZER=RATE")
    parser.add_argument("--recipe", default="small-trunk")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    recipe, corpus = load_recipe(given.recipe), Corpus.load(given.corpus)
    vocabulary = load_vocabulary(ready_made(str(recipe.vocabulary.name)))
    measure = live_measure(vocabulary, corpus.utterances("held_out"))
    measured = []
    for chosen in given.rates:
        name, rate = chosen.split("=")
        config = dataclasses.replace(
            recipe.adaptation, optimizer=name, learning_rate=float(rate), steps=given.steps, save_every=given.steps
        )
        model = install(new_model(recipe.model, vocabulary, config.seed), recipe.attention.sinks[0])
        stream = example_stream(model, corpus, vocabulary, config)
        with tempfile.TemporaryDirectory() as folder:
            training = adapt(model, stream, config, Path(folder))
        values = {key: round(value, 4) for key, value in measure(training.model).items()}
        seconds = training.history[-1]["seconds"]
        measured.append({"optimizer": name, "learning_rate": float(rate), "seconds": round(seconds, 1), **values})
        print(
            f"{name:6} {rate:>6} " + "  ".join(f"{k.split('/')[1]} {v}" for k, v in values.items() if "loss" in k),
            flush=True,
        )
    pieces = given.steps * recipe.adaptation.batch_bins
    kept = {"made": provenance(), "recipe": given.recipe, "steps": given.steps, "pieces": pieces, "measured": measured}
    write_text(given.output, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
