"""From one SpeechLM to another: ``sparq adapt``, ``quantize``, ``export`` and ``deploy``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparq.commands.arguments import (
    add_command,
    add_model,
    add_overwrite,
    add_settings,
    count,
    load_model,
    model_folder,
    positive,
    print_json,
    read_settings,
)
from sparq.config import QUANTIZATION_METHODS, QUANTIZATION_ROUNDINGS, SINKS
from sparq.errors import UserError


def add_adapt(made: Any) -> None:
    """Declare ``sparq adapt``."""
    command = add_command(made, "adapt", adapt, "Adapt a SpeechLM further, to a corpus", resumes=True)
    command.add_argument("corpus", help="a corpus folder")
    command.add_argument("-o", "--output", required=True, help="a folder; the model is in its folder speechlm")
    add_overwrite(command)
    command.add_argument("--sink", choices=SINKS, help="default: the model's own")
    add_model(command)
    add_settings(command, "the adaptation, such as method=lora steps=200")


def adapt(given: argparse.Namespace) -> None:
    """Adapt a SpeechLM further."""
    from sparq.adaptation.ends import best_step
    from sparq.adaptation.training import MEMORY
    from sparq.config import AdaptationConfig
    from sparq.corpus.corpus import Corpus
    from sparq.making import SPEECHLM, TRAINING, Watcher, adapt_speechlm
    from sparq.progress import Terminal

    ended = any(text.partition("=")[0] in ("steps", "epochs", "minutes") for text in given.settings)
    config = read_settings(AdaptationConfig, {} if ended else {"epochs": 1}, given)
    corpus, output = Corpus.load(Path(given.corpus)), Path(given.output)
    with Terminal(quiet=given.json) as terminal:
        watcher = Watcher(terminal.stage, terminal.training, terminal.note)
        model, overwrite = model_folder(given), given.overwrite
        history = adapt_speechlm(model, corpus, given.sink, config, output, watcher, overwrite=overwrite)
    if given.json:
        print_json(history)
    else:
        kept = f", best at {best_step(history, config.early_stopping)}" if config.early_stopping else ""
        print(f"{output / SPEECHLM}: {history[-1]['step']} steps{kept}")
        packed = output / TRAINING / MEMORY
        if packed.is_file():
            memory = json.loads(packed.read_text(encoding="utf-8"))
            print(f"frozen weights: {memory['after'] / 1e6:.1f} MB in place of {memory['before'] / 1e6:.1f} MB")


def add_quantize(made: Any) -> None:
    """Declare ``sparq quantize``."""
    command = add_command(made, "quantize", quantize, "Quantise a SpeechLM (simulated)", as_json=False, resumes=True)
    command.add_argument("corpus", help="a corpus folder, to calibrate on")
    command.add_argument("-o", "--output", required=True, help="a folder")
    add_overwrite(command)
    command.add_argument("--method", default="smoothquant", help=", ".join(QUANTIZATION_METHODS))
    command.add_argument("--rounding", default="nearest", help=f"of the weights: {' or '.join(QUANTIZATION_ROUNDINGS)}")
    command.add_argument("--weight-bits", type=int, default=8)
    command.add_argument("--activation-bits", type=int, default=8)
    command.add_argument("--alpha", type=float, default=0.5)
    command.add_argument("--calibration", type=positive, default=256, help="sequences")
    command.add_argument("--weight-clip-percent", type=float, default=0.0, help="of the tail of the weights, cut off")
    command.add_argument("--activation-grid", help="symmetric or asymmetric; default: what the method takes")
    command.add_argument("--activation-clip", type=float, default=1.0, help="share of a token's range on the grid")
    command.add_argument("--state-grids", default="token", help="one scale a token, or a head, of q, k and v")
    command.add_argument("--group-size", type=count, help="inputs that share a scale of the weights; 0 for all")
    command.add_argument("--epochs", type=positive, default=20, help="of the methods that learn")
    command.add_argument("--batch-sequences", type=positive, default=1, help="in a step of the methods that learn")
    command.add_argument("--seed", type=count, default=0, help="of a rotation, or of FlatQuant's start")
    add_model(command)


def quantize(given: argparse.Namespace) -> None:
    """Quantise a SpeechLM."""
    from sparq.corpus.corpus import Corpus
    from sparq.making import Watcher, quantize_speechlm
    from sparq.progress import Terminal
    from sparq.quantization import QuantizationConfig

    config = QuantizationConfig(
        method=given.method,
        weight_bits=given.weight_bits,
        activation_bits=given.activation_bits,
        alpha=given.alpha,
        calibration_sequences=given.calibration,
        rounding=given.rounding,
        weight_clip_percent=given.weight_clip_percent,
        activation_grid=given.activation_grid,
        activation_clip=given.activation_clip,
        state_grids=given.state_grids,
        group_size=given.group_size,
        seed=given.seed,
        epochs=given.epochs,
        batch_sequences=given.batch_sequences,
    )
    corpus, output = Corpus.load(Path(given.corpus)), Path(given.output)
    with Terminal() as terminal:
        watcher = Watcher(note=terminal.note)
        quantize_speechlm(model_folder(given), corpus, config, output, watcher, overwrite=given.overwrite)
    print(f"{given.output}: {config.name} {config.bits}, simulated")


def add_export(made: Any) -> None:
    """Declare ``sparq export``."""
    command = add_command(made, "export", export, "Write a SpeechLM as a folder to pass on", as_json=False)
    command.add_argument("model", help="a SpeechLM folder")
    command.add_argument("-o", "--output", required=True, help="a folder; an older SpeechLM of that name is replaced")
    text = "another branch of the same training: the mean of all weights is written"
    command.add_argument("--average", action="append", default=[], metavar="MODEL", help=text)
    command.add_argument("--half", action="store_true", help="weights in half precision")
    command.add_argument("--lean", action="store_true", help="without the parts that ship with SpARQ")


def export(given: argparse.Namespace) -> None:
    """Write a SpeechLM as a folder to pass on."""
    import sparq
    from sparq.language.averaging import average
    from sparq.language.card import read_card, write_card

    output = _free_for_speechlm(given)
    lm, card = load_model(given), read_card(model_folder(given))
    if given.average:
        lm = average([lm, *(sparq.load(name) for name in given.average)])
    lm.save(output, half=given.half, complete=not given.lean)
    if not given.average:
        write_card(output, card)
    print(f"{output}: {_megabytes(output.rglob('*'))}")


def add_deploy(made: Any) -> None:
    """Declare ``sparq deploy``."""
    text = "Write a SpeechLM that is really smaller and faster: for a CPU (ONNX Runtime), or a GPU (torch)"
    command = add_command(made, "deploy", deploy, text, as_json=False)
    command.add_argument("model", nargs="?", help="a SpeechLM folder (default: the model that ships)")
    command.add_argument("-o", "--output", required=True, help="a folder; an older SpeechLM of that name is replaced")
    command.add_argument("--bits", type=int, default=4, help="of the weights: 4 (default), 8, or 32 (onnx) for float32")
    command.add_argument("--engine", default="onnx", help="what computes: onnx (default; on a CPU) or torch")
    text = "what low-bit weights are multiplied by, with onnx: int8 (default) or float32, which is far slower"
    command.add_argument("--activations", help=text)
    command.add_argument("--lean", action="store_true", help="without the parts that ship with SpARQ")


def deploy(given: argparse.Namespace) -> None:
    """Write a SpeechLM that is really smaller."""
    from sparq.deployment import DeploymentConfig
    from sparq.language.card import read_card, write_card
    from sparq.language.deploy import deploy
    from sparq.language.folder import weight_files

    config = DeploymentConfig(given.bits, given.activations, given.engine)
    output = _free_for_speechlm(given)
    lm, card = load_model(given), read_card(model_folder(given))
    whole = 4 * sum(parameter.numel() for parameter in lm.model.parameters())
    deploy(lm, output, config.bits, config.activations, engine=config.engine, complete=not given.lean)
    told = f"Deployed with {config.name}. The numbers below are those of the model that it was made from."
    write_card(output, card, told)
    model = weight_files(output)
    share = sum(path.stat().st_size for path in model) / whole
    print(f"{output}: {config.name}, the model {_megabytes(model)}, {100 * share:.0f} % of float32's")


def _free_for_speechlm(given: argparse.Namespace) -> Path:
    """Give the output folder, if nothing but an older SpeechLM is there."""
    from sparq.artifacts import MANIFEST, is_free, named_folder, read_manifest, require_writable

    output = named_folder(Path(given.output))
    if not is_free(output) and not ((output / MANIFEST).is_file() and read_manifest(output, "speechlm")):
        raise UserError(f"{output}: is in the way (it is no SpeechLM)")
    require_writable(output)
    return output


def _megabytes(paths: Iterable[Path]) -> str:
    return f"{sum(path.stat().st_size for path in paths if path.is_file()) / 1e6:.1f} MB"
