"""Does the optimizer make the outliers, or the attention? One small model from nothing for every pair of them.

    python benchmarks/optimizers.py data/text --output results/optimizers.json

Every model reads the same batches of text (each sequence starts with the same token) with the same initial weights. A
sweep with the ordinary softmax chooses each optimizer's learning rate. What is finished stays in the output and is not
made again; a training that was killed goes on from its checkpoint under ``--work``.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.start import new_model
from sparq.adaptation.training import Training, adapt
from sparq.artifacts import fingerprint, provenance, write_text
from sparq.attention import install
from sparq.config import AdaptationConfig, ModelConfig
from sparq.corpus.utterance import Utterance
from sparq.evaluation.outliers import outliers
from sparq.evaluation.perplexity import perplexity
from sparq.evaluation.scoring import live_measure, task_examples
from sparq.language.likelihood import padded_batches
from sparq.language.tasks import Example
from sparq.language.vocabulary import Vocabulary, load_vocabulary
from sparq.making import ready_made
from sparq.quantization import QuantizationConfig, quantize
from sparq.quantization.calibration import Batch, evaluating, model_inputs

SHAPE = ModelConfig(hidden_size=128, layers=8, heads=4, intermediate_size=256, max_positions=256, dropout=0.0)
WORDS = 60  # of a sequence, some 115 pieces
HELD_OUT = 20  # every so many-th sequence is not trained on
SCORED = 64  # held-out sequences, and as many of the others to calibrate on
FROM = 16  # first position whose attention is looked at: before it there is little but the first token to look at
SWEEP_SINK = "none"


def sequences(folder: Path) -> list[Utterance]:
    """Cut every text of a folder (the last column of a table, the paragraphs of a book) into runs of so many words."""
    made = []
    for path in sorted([*folder.rglob("*.tsv"), *folder.rglob("*.md")]):
        lines = path.read_text(encoding="utf-8").splitlines()
        words = " ".join(line.rpartition("\t")[2] for line in lines).split()
        runs = (words[first : first + WORDS] for first in range(0, len(words) - WORDS + 1, WORDS))
        made += [Utterance(" ".join(run), np.empty(0, np.int64)) for run in runs]
    return made


def attention_and_residual(model: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """Look at the first token: the attention it gets, and how far the largest value of the residual stream stands out.

    The mass is the mean probability of the first token over sequences and later positions; that of all heads, and of
    the head that gives most. The residual stream is what each block gives; its largest value in a sequence is taken
    relative to the median magnitude there.
    """
    shown = install(copy.deepcopy(model), model.config.sparq_attention["sink"], "plain")
    masses, kept, ratios, first = [], [], [], []
    with evaluating(shown):
        for batch in batches:
            for row in range(len(batch["input_ids"])):
                length = int(batch["attention_mask"][row].sum())
                one = {key: value[row : row + 1, :length] for key, value in batch.items()}
                out = shown(**model_inputs(shown, one), output_attentions=True, output_hidden_states=True)
                probabilities = torch.cat(out.attentions)[:, :, FROM:]  # [layers, heads, queries, keys]
                masses.append(probabilities[..., 0].mean(-1))
                kept.append(probabilities.sum(-1).mean())
                blocks = torch.cat(
                    out.hidden_states[1:-1]
                ).abs()  # [layers - 1, positions, channels]; the last is normed
                places = blocks.amax(-1)
                ratios.append((places.amax(-1) / blocks.flatten(1).median(-1).values).amax())
                first.append(places.amax(0).argmax() == 0)
    mass = torch.stack(masses).mean(0)
    return {
        "first_token_mass_percent": 100 * float(mass.mean()),
        "first_token_mass_of_its_head_percent": 100 * float(mass.max()),
        "attention_kept_percent": 100 * float(torch.stack(kept).mean()),
        "largest_over_median": float(torch.stack(ratios).mean()),
        "largest_at_first_token_percent": 100 * float(torch.stack(first).float().mean()),
    }


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

    def train_model(self, sink: str, config: AdaptationConfig, *, live: bool) -> Training:
        model = install(new_model(SHAPE, self.vocabulary, config.seed), sink)
        stream = ExampleStream(
            self.train, self.vocabulary, config.task_weights, config.batch_bins, maximum_length=SHAPE.max_positions
        )
        folder = self.arguments.work / fingerprint({"sink": sink, "config": config, "shape": SHAPE})
        measure = live_measure(self.vocabulary, self.held_out) if live else None
        training = adapt(model, stream, config, folder, measure=measure)
        shutil.rmtree(folder)
        return training

    def examples(self, utterances: list[Utterance]) -> list[Example]:
        return task_examples(self.vocabulary, utterances[:SCORED], "textlm")

    def swept(self, optimizer: str, rate: float) -> dict[str, Any]:
        training = self.train_model(SWEEP_SINK, self.config(optimizer, rate, self.arguments.sweep_steps), live=False)
        return {"perplexity": round(perplexity(training.model, self.examples(self.held_out)).perplexity, 3)}

    def cell(self, optimizer: str, sink: str, rate: float) -> dict[str, Any]:
        training = self.train_model(sink, self.config(optimizer, rate, self.arguments.steps), live=True)
        model, scored = training.model, self.examples(self.held_out)
        batches = list(padded_batches(scored))
        report, full = outliers(model, batches), perplexity(model, scored).perplexity
        blocks = [report.infinity_norms[f"model.layers.{index}"] for index in range(SHAPE.layers)]
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
            "maximum_infinity_norm": report.maximum_infinity_norm,
            "average_kurtosis": report.average_kurtosis,
            "largest_kurtosis": max(report.kurtoses.values()),
            **attention_and_residual(model, batches),
        }
        return {
            **{name: round(value, 3) for name, value in measured.items()},
            "kurtosis_of_blocks": [round(report.kurtoses[f"model.layers.{i}"], 2) for i in range(SHAPE.layers)],
            "infinity_norm_of_blocks": [round(norm, 2) for norm in blocks],
            "quantised": quantised,
            "seconds": round(max(entry.get("seconds", 0.0) for entry in training.history), 1),
            "curve": [
                {
                    "step": int(entry["step"]),
                    "held_out_loss": round(entry["held_out/textlm/loss"], 4),
                    "maximum_infinity_norm": round(entry["outliers/text/maximum_infinity_norm"], 2),
                    "average_kurtosis": round(entry["outliers/text/average_kurtosis"], 2),
                }
                for entry in training.history
                if "held_out/textlm/loss" in entry
            ],
        }


def kept_rows(path: Path, settings: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Read what is finished; what was measured with other settings is made anew."""
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] == settings:
            return kept["sweep"], kept["cells"]
    return [], []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="folder of texts")
    parser.add_argument("--optimizers", nargs="+", default=["adam", "orthoadam", "muon"])
    parser.add_argument("--sinks", nargs="*", default=["none", "zero", "max"])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3, 9e-3], help="of the sweep")
    parser.add_argument("--sweep-steps", type=int, default=120)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--measure-every", type=int, default=250)
    parser.add_argument("--work", type=Path, default=Path("runs/optimizers"), help="for checkpoints")
    parser.add_argument("--output", type=Path, default=Path("results/optimizers.json"))
    given = parser.parse_args()
    vocabulary, said = load_vocabulary(ready_made("vocabulary")), sequences(given.text)
    held_out = said[::HELD_OUT]
    spread = [held_out[i] for i in np.random.default_rng(0).permutation(len(held_out))]
    bench = Bench(given, vocabulary, [one for i, one in enumerate(said) if i % HELD_OUT], spread)
    shared = dataclasses.asdict(bench.config("adam", 1.0, given.sweep_steps))
    for own in ("optimizer", "learning_rate", "steps", "warmup_steps", "save_every"):
        del shared[own]
    settings = {
        "model": dataclasses.asdict(SHAPE),
        "training": shared,
        "sweep_steps": given.sweep_steps,
        "train_sequences": len(bench.train),
        "scored_sequences": SCORED,
    }
    settings = json.loads(json.dumps(settings))
    sweep, cells = kept_rows(given.output, settings)

    def keep() -> None:
        report = {
            "what": "models from nothing on text; quantisation simulated; lower perplexity is better",
            "made": provenance(),
            "settings": settings,
            "sweep": sweep,
            "cells": cells,
        }
        given.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(given.output, json.dumps(report, indent=1) + "\n")

    for optimizer, rate in itertools.product(given.optimizers, given.rates):
        name = {"optimizer": optimizer, "learning_rate": rate}
        if not any(name.items() <= row.items() for row in sweep):
            sweep.append({**name, **bench.swept(optimizer, rate)})
            keep()
            print(sweep[-1], flush=True)
    for sink, optimizer in itertools.product(given.sinks, given.optimizers):
        rows = [row for row in sweep if row["optimizer"] == optimizer]
        rate = min(rows, key=lambda row: row["perplexity"])["learning_rate"]
        name = {"optimizer": optimizer, "attention": sink, "learning_rate": rate, "steps": given.steps}
        if not any(name.items() <= row.items() for row in cells):
            cells.append({**name, **bench.cell(optimizer, sink, rate)})
            keep()
            print({key: value for key, value in cells[-1].items() if key != "curve"}, flush=True)


if __name__ == "__main__":
    main()
