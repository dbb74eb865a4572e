"""Perplexity of a language model under every quantisation method and width (simulated).

    python benchmarks/quantization.py                                  # the shipped speechlm-none, on its own text
    python benchmarks/quantization.py smollm2-135m --text book.txt --length 512
    python benchmarks/quantization.py runs/better/speechlm --corpus runs/mine --bits 4x4 --clip 1 5
    python benchmarks/quantization.py --inputs --bits 4x4 --clip     # with the outliers of what the linears read
    python benchmarks/quantization.py --bits 3x16 4x4 --methods round rotation --roundings nearest gptq --clip

A model is a SpeechLM folder or the name of one that ships, or a transformers folder or the name of one that travels in
a package. A SpeechLM is scored on its textLM task, and with a corpus on speechLM too; any other model on text cut into
pieces of one length. What is scored is not calibrated on.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from sparq.artifacts import provenance, write_text
from sparq.assets import language_model, ready_made, resolve
from sparq.attention import load_pretrained
from sparq.corpus.corpus import Corpus
from sparq.corpus.utterance import Utterance
from sparq.device import usual_device
from sparq.evaluation.linear_inputs import INPUTS, linear_inputs
from sparq.evaluation.outliers import by_layer
from sparq.evaluation.perplexity import perplexity
from sparq.evaluation.scoring import task_examples
from sparq.evaluation.texts import lines_of, windows
from sparq.language.likelihood import padded_batches
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import Example
from sparq.language.vocabulary import Vocabulary
from sparq.making import calibration_batches
from sparq.quantization import BlockReport, QuantizationConfig, quantize
from sparq.quantization.calibration import Batch
from sparq.quantization.config import FULL_PRECISION, GRIDS, METHODS, ROUNDINGS, STATE_GRIDS

Given = tuple[Any, list[Batch], dict[str, list[Example]]]


def lines(arguments: argparse.Namespace) -> list[str]:
    return lines_of(resolve(arguments.text))


def speechlm(folder: Path, arguments: argparse.Namespace) -> Given:
    lm = SpeechLM.load(folder, str(usual_device()))
    if arguments.corpus is None:
        said = [Utterance(line, torch.empty(0).numpy()) for line in lines(arguments)]
        made = task_examples(lm.vocabulary, said, "textlm")
        scored, kept = made[-arguments.scored :], made[: -arguments.scored][: arguments.calibration]
        return lm.model, list(padded_batches(kept)), {"text": scored}
    corpus = Corpus.load(arguments.corpus)
    return (
        lm.model,
        calibration_batches(corpus, lm.vocabulary, arguments.calibration),
        held_out(lm.vocabulary, corpus, arguments),
    )


def held_out(vocabulary: Vocabulary, corpus: Corpus, arguments: argparse.Namespace) -> dict[str, list[Example]]:
    said = corpus.utterances("held_out")[: arguments.scored]
    return {name: task_examples(vocabulary, said, task) for name, task in (("text", "textlm"), ("speech", "speechlm"))}


def plain(name: str, arguments: argparse.Namespace) -> Given:
    path = language_model(name)
    made = windows(AutoTokenizer.from_pretrained(path), lines(arguments), arguments.length)
    scored, kept = made[-arguments.scored :], made[: -arguments.scored][: arguments.calibration]
    return load_pretrained(path, dtype=torch.float32).to(usual_device()), list(padded_batches(kept)), {"text": scored}


def configurations(arguments: argparse.Namespace) -> list[QuantizationConfig]:
    made = []
    for weight_bits, activation_bits in arguments.bits:
        widths = {"weight_bits": weight_bits, "activation_bits": activation_bits, "epochs": arguments.epochs}
        widths |= {"calibration_sequences": arguments.calibration, "batch_sequences": arguments.batch}
        widths |= {"transformation_rate": arguments.transformation_rate, "clipping_rate": arguments.clipping_rate}
        if activation_bits < FULL_PRECISION:
            widths |= {"activation_grid": arguments.activation_grid, "state_grids": arguments.state_grids}
        for method in arguments.methods:
            roundings = arguments.roundings if weight_bits < FULL_PRECISION else ["nearest"]
            share = 1.0 if method == "flatquant" or activation_bits == FULL_PRECISION else arguments.activation_clip
            made += [
                QuantizationConfig(method, **widths, rounding=rounding, activation_clip=share) for rounding in roundings
            ]
        clips = arguments.clip if weight_bits < FULL_PRECISION else []
        made += [QuantizationConfig("smoothquant", **widths, weight_clip_percent=share) for share in clips]
    return made


def row(
    model: Any,
    config: QuantizationConfig | None,
    calibration: Sequence[Batch],
    scored: dict[str, list[Example]],
    kept: Path | None,
    *,
    inputs: bool,
) -> Any:
    """Quantise a copy of a model, and score it; blocks that learnt are kept in a folder of the configuration's name."""
    start, learnt = time.perf_counter(), []

    def report(block: BlockReport) -> None:
        learnt.append([block.before, block.after])
        print(f"    block {block.block} of {block.blocks}: {block.before:.4g} -> {block.after:.4g}", flush=True)

    if config is not None:
        folder = kept / f"{config.bits}-{config.name}" if kept else None
        model = quantize(copy.deepcopy(model), config, calibration, folder=folder, report=report)
    seconds = time.perf_counter() - start
    found = {name: perplexity(model, examples) for name, examples in scored.items()}
    shown = "  ".join(f"{name} {one.perplexity:.3f} ({one.next_token_accuracy:.1f} %)" for name, one in found.items())
    bits, method = ("W16A16", "full precision") if config is None else (config.bits, config.name)
    print(f"{bits:<8}{method:<40}{shown}  {seconds:.1f} s", flush=True)
    read = {name: input_outliers(model, examples) for name, examples in scored.items()} if inputs else {}
    return {
        "bits": bits,
        "method": config.method if config else method,
        "rounding": config.rounding if config else None,
        "weight_clip_percent": config.weight_clip_percent if config else 0,
        "activation_grid": config.activation_grid if config else None,
        "activation_clip": config.activation_clip if config else 1.0,
        "state_grids": config.state_grids if config else "token",
        "perplexity": {name: round(one.perplexity, 4) for name, one in found.items()},
        "next_token_accuracy_percent": {name: round(one.next_token_accuracy, 3) for name, one in found.items()},
        "tokens": {name: one.tokens for name, one in found.items()},
        "seconds_to_quantise": round(seconds, 2),
        "block_errors_before_and_after": learnt,
        "outliers_of_linear_inputs": read,
    }


def input_outliers(model: Any, examples: list[Example]) -> dict[str, dict[str, float]]:
    """Show what the linears read, before it is rounded: the largest norm of all blocks, the others their means."""
    found = linear_inputs(model, padded_batches(examples))
    norms, kurtoses, crests = (
        torch.tensor(by_layer(values, INPUTS)) for values in (found.infinity_norms, found.kurtoses, found.crest_factors)
    )
    rows = {}
    for index, name in enumerate(INPUTS):
        rows[name] = {
            "maximum_infinity_norm": round(float(norms[:, index].max()), 3),
            "average_kurtosis": round(float(kurtoses[:, index].mean()), 3),
            "average_crest_factor": round(float(crests[:, index].mean()), 3),
        }
    rows["all"] = {
        name: round(getattr(found, name), 3)
        for name in ("maximum_infinity_norm", "average_kurtosis", "average_crest_factor")
    }
    for name, values in rows.items():
        shown = "  ".join(f"{measure.split('_', 1)[1].replace('_', ' ')} {x:.2f}" for measure, x in values.items())
        print(f"    {'read by ' + name:<28}{shown}", flush=True)
    return rows


def widths(text: str) -> tuple[int, int]:
    weight, _, activation = text.partition("x")
    return int(weight), int(activation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="speechlm-none")
    parser.add_argument("--text", default="sparq:recipes/demo.tsv", help="one text in each line")
    parser.add_argument("--corpus", type=Path, help="for a SpeechLM, in place of the text")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    text = "of the weights"
    parser.add_argument("--roundings", nargs="+", default=list(ROUNDINGS), choices=ROUNDINGS, help=text)
    parser.add_argument("--bits", nargs="+", type=widths, default=[(8, 8), (4, 4)], help="such as 4x16: weights 4")
    parser.add_argument("--clip", nargs="*", type=float, default=[1.0, 5.0], help="percent, for SmoothQuant besides")
    parser.add_argument("--activation-grid", choices=GRIDS, help="default: what each method takes")
    parser.add_argument("--activation-clip", type=float, default=1.0, help="share of a token's range, if not learnt")
    parser.add_argument("--state-grids", default="token", choices=STATE_GRIDS, help="scales of q, k and v")
    parser.add_argument("--calibration", type=int, default=128, help="sequences")
    parser.add_argument("--scored", type=int, default=64, help="sequences")
    parser.add_argument("--length", type=int, default=512, help="pieces in a sequence, if it is no SpeechLM")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1, help="sequences in a step of the learning")
    parser.add_argument("--transformation-rate", type=float, default=QuantizationConfig.transformation_rate)
    parser.add_argument("--clipping-rate", type=float, default=QuantizationConfig.clipping_rate)
    parser.add_argument("--kept", type=Path, help="a folder for the blocks that have learnt, to go on after a kill")
    parser.add_argument("--inputs", action="store_true", help="measure the outliers of what the linears read, too")
    parser.add_argument("--output", type=Path, default=Path("results/quantization.json"))
    arguments = parser.parse_args()
    folder = ready_made(arguments.model, must_exist=False)
    model, calibration, scored = speechlm(folder, arguments) if folder else plain(arguments.model, arguments)
    rows: list[Any] = []
    report = {
        "what": "perplexity and next-token accuracy, quantisation simulated; lower perplexity is better",
        "made": provenance(),
        "settings": {name: str(value) for name, value in vars(arguments).items() if name not in {"output", "kept"}},
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for config in (None, *configurations(arguments)):
        rows.append(row(model, config, calibration, scored, arguments.kept, inputs=arguments.inputs))
        write_text(arguments.output, json.dumps(report, indent=1) + "\n")  # a kill loses no row


if __name__ == "__main__":
    main()
