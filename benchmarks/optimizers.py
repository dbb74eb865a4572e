"""Does the optimizer make the outliers, or the attention? One small model from nothing for every pair of them.

    python benchmarks/optimizers.py data/text --output results/optimizers.json

Every model reads the same batches of text (each sequence starts with the same token) with the same initial weights.
With the ordinary softmax every learning rate is tried, and each optimizer's best is taken for the other attentions.
What is finished stays in the output and is not made again; a training that was killed goes on from its checkpoint under
``--work``.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.start import new_model
from sparq.adaptation.training import Training, adapt
from sparq.artifacts import fingerprint, provenance, write_text
from sparq.assets import ready_made
from sparq.attention import install
from sparq.config import AdaptationConfig, ModelConfig
from sparq.corpus.utterance import Utterance
from sparq.evaluation.outliers import outliers
from sparq.evaluation.perplexity import perplexity
from sparq.evaluation.scoring import live_measure, task_examples
from sparq.evaluation.sinks import sinks
from sparq.language.likelihood import padded_batches
from sparq.language.tasks import Example
from sparq.language.vocabulary import Vocabulary, load_vocabulary
from sparq.quantization import QuantizationConfig, quantize

SHAPE = ModelConfig(hidden_size=128, layers=8, heads=4, intermediate_size=256, max_positions=256, dropout=0.0)
WORDS = 60  # of a sequence, some 115 pieces
HELD_OUT = 20  # every so many-th sequence is not trained on
SCORED = 64  # held-out sequences, and as many of the others to calibrate on
LIVE = (
    "step",
    "held_out/textlm/loss",
    "outliers/text/maximum_infinity_norm",
    "outliers/text/average_kurtosis",
    "outliers/text/first_token_attention",
    "outliers/text/massive_activation_ratio",
)


def sequences(folder: Path) -> list[Utterance]:
    """Cut every text of a folder (the last column of a table, the paragraphs of a book) into runs of so many words."""
    made = []
    for path in sorted([*folder.rglob("*.tsv"), *folder.rglob("*.md")]):
        lines = path.read_text(encoding="utf-8").splitlines()
        words = " ".join(line.rpartition("\t")[2] for line in lines).split()
        runs = (words[first : first + WORDS] for first in range(0, len(words) - WORDS + 1, WORDS))
        made += [Utterance(" ".join(run), np.empty(0, np.int64)) for run in runs]
    return made


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all trainings have in common."""

    arguments: argparse.Namespace
    vocabulary: Vocabulary
    train: list[Utterance]
    held_out: list[Utterance]

    def config(self, optimizer: str, rate: float, steps: int) -> AdaptationConfig:
        return AdaptationConfig(
            method="full", optimizer=optimizer, learning_rate=rate, steps=steps, warmup_steps=steps // 10,
            beta2=0.98, weight_decay=0.0, batch_bins=256, task_weights={"textlm": 1.0}, log_every=50,
            save_every=self.arguments.measure_every,
        )  # fmt: skip

    def train_model(self, sink: str, config: AdaptationConfig) -> Training:
        model = install(new_model(SHAPE, self.vocabulary, config.seed), sink)
        stream = ExampleStream(
            self.train, self.vocabulary, config.task_weights, config.batch_bins, maximum_length=SHAPE.max_positions
        )
        folder = self.arguments.work / fingerprint({"sink": sink, "config": config, "shape": SHAPE})
        training = adapt(model, stream, config, folder, measure=live_measure(self.vocabulary, self.held_out))
        shutil.rmtree(folder)
        return training

    def examples(self, utterances: list[Utterance]) -> list[Example]:
        return task_examples(self.vocabulary, utterances[:SCORED], "textlm")

    def cell(self, optimizer: str, sink: str, rate: float) -> dict[str, Any]:
        training = self.train_model(sink, self.config(optimizer, rate, self.arguments.steps))
        model, scored = training.model, self.examples(self.held_out)
        batches = list(padded_batches(scored))
        outside, inside = outliers(model, batches), sinks(model, batches)
        full = perplexity(model, scored).perplexity
        calibration = list(padded_batches(self.examples(self.train[:: len(self.train) // SCORED])))
        quantised = {}
        for method, bits in itertools.product(("round", "smoothquant"), (8, 4)):
            config = QuantizationConfig(method, bits, bits, calibration_sequences=SCORED)
            found = perplexity(quantize(copy.deepcopy(model), config, calibration), scored).perplexity
            quantised[f"{method} {config.bits}"] = {
                "perplexity": round(found, 3),
                "degradation_percent": round(100 * (found / full - 1), 2),
            }
        measured = {
            "perplexity": full,
            "maximum_infinity_norm": outside.maximum_infinity_norm,
            "average_kurtosis": outside.average_kurtosis,
            "largest_kurtosis": max(outside.kurtoses.values()),
            "first_token_attention": inside.first_token_attention,
            "sink_heads": inside.sink_heads,
            "attention_unspent": float(np.mean(inside.unspent)),
            "massive_activation_ratio": inside.massive_activation_ratio,
        }
        return {
            **{name: round(value, 4) for name, value in measured.items()},
            "kurtosis_by_block": [round(outside.kurtoses[f"model.layers.{i}"], 2) for i in range(SHAPE.layers)],
            "infinity_norm_by_block": [
                round(outside.infinity_norms[f"model.layers.{i}"], 2) for i in range(SHAPE.layers)
            ],
            "position_of_largest_by_block": [one.position for one in inside.largest],
            "quantised": quantised,
            "seconds": round(max(entry.get("seconds", 0.0) for entry in training.history), 1),
            "curve": [
                {name.rpartition("/")[2]: round(value, 4) for name, value in entry.items() if name in LIVE}
                for entry in training.history
                if "held_out/textlm/loss" in entry
            ],
        }


def kept_cells(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Read what is finished; what was measured with other settings is made anew."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return list(kept["cells"]) if kept.get("settings") == settings else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="folder of texts")
    parser.add_argument("--optimizers", nargs="+", default=["adam", "orthoadam", "muon"])
    parser.add_argument("--sinks", nargs="*", default=["zero", "max"], help="besides none")
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3, 6e-3])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--measure-every", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("runs/optimizers"), help="for checkpoints")
    parser.add_argument("--output", type=Path, default=Path("results/optimizers.json"))
    given = parser.parse_args()
    vocabulary, said = load_vocabulary(ready_made("vocabulary")), sequences(given.text)
    held_out = said[::HELD_OUT]
    spread = [held_out[i] for i in np.random.default_rng(0).permutation(len(held_out))]
    bench = Bench(given, vocabulary, [one for i, one in enumerate(said) if i % HELD_OUT], spread)
    shared = dataclasses.asdict(bench.config("adam", 1.0, given.steps))
    for own in ("optimizer", "learning_rate", "steps", "warmup_steps", "save_every"):
        del shared[own]
    settings = {
        "model": dataclasses.asdict(SHAPE),
        "training": shared,
        "train_sequences": len(bench.train),
        "scored_sequences": SCORED,
    }
    settings = json.loads(json.dumps(settings))
    cells = kept_cells(given.output, settings)

    def make(optimizer: str, sink: str, rate: float) -> None:
        name = {"optimizer": optimizer, "attention": sink, "learning_rate": rate, "steps": given.steps}
        if any(name.items() <= cell.items() for cell in cells):
            return
        cells.append({**name, **bench.cell(optimizer, sink, rate)})
        report = {
            "what": "models from nothing on text; quantisation simulated; lower perplexity is better",
            "made": provenance(),
            "settings": settings,
            "cells": cells,
        }
        given.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(given.output, json.dumps(report, indent=1) + "\n")
        print({key: value for key, value in cells[-1].items() if key != "curve"}, flush=True)

    for rate, optimizer in itertools.product(given.rates, given.optimizers):
        make(optimizer, "none", rate)
    for sink, optimizer in itertools.product(given.sinks, given.optimizers):
        tried = {"optimizer": optimizer, "attention": "none", "steps": given.steps}
        best = min((c for c in cells if tried.items() <= c.items()), key=lambda cell: cell["perplexity"])
        make(optimizer, sink, best["learning_rate"])


if __name__ == "__main__":
    main()
