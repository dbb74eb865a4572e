"""What each command of the command line does: read what was given, call one function, print."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparq.errors import UserError

if TYPE_CHECKING:
    from sparq.language.generation import GenerationOptions
    from sparq.language.speech_lm import SpeechLM


def print_json(value: object) -> None:
    """Print what a command found, for programs to read."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _audio(names: Sequence[str]) -> list[Any]:
    return [sys.stdin.buffer if name == "-" else name for name in names]


def load_model(given: argparse.Namespace) -> SpeechLM:
    """Load the SpeechLM that ``--model`` names, or the one that ships."""
    import sparq

    return sparq.load(given.model)


def model_folder(given: argparse.Namespace) -> Path:
    """Find the folder of the SpeechLM that ``--model`` names, or of the one that ships."""
    from sparq.assets import DEFAULT_MODEL, shipped

    return Path(given.model) if given.model else shipped(DEFAULT_MODEL)


def search_options(given: argparse.Namespace) -> GenerationOptions | None:
    """Give the search that was asked for, or None."""
    from sparq.language.generation import GenerationOptions, beam_search

    if given.temperature is not None or given.top_p is not None:
        if given.beam is not None:
            raise UserError(f"--beam: {given.beam} (does not go with --temperature or --top-p, which sample)")
        asked = {"temperature": given.temperature, "top_p": given.top_p, "seed": given.seed}
        chosen: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        return GenerationOptions(method="sample", **chosen)
    return None if given.beam is None else beam_search(given.beam)


def read_settings(kind: Any, defaults: dict[str, Any], given: argparse.Namespace) -> Any:
    """Read the settings of a command, ``key=value``, over its defaults."""
    from sparq.schema import parse, with_overrides

    return parse(kind, with_overrides(defaults, given.settings), f"sparq {given.command}")


def demo(given: argparse.Namespace) -> None:
    """Run the recipe "demo"."""
    given.recipe, given.check = "demo", False
    run(given)


def run(given: argparse.Namespace) -> None:
    """Run a recipe, and show its table."""
    from sparq.recipe import load_recipe

    recipe = load_recipe(given.recipe, given.settings)  # before what takes seconds to import
    if given.check:
        from sparq.corpus_commands import check

        check(recipe, as_json=given.json)
        return

    from sparq.making import Watcher
    from sparq.paper.summary import finish
    from sparq.progress import Terminal

    with Terminal(quiet=given.json) as terminal:
        watcher = Watcher(terminal.stage, terminal.training, terminal.note)
        rows, report = finish(recipe, watcher, quiet=given.json)
    if given.json:
        print_json({"rows": rows, "report": str(report)})
        return
    terminal.table(rows)
    print(f"report: {report}")


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
        history = adapt_speechlm(model_folder(given), corpus, given.sink, config, output, watcher)
    if given.json:
        print_json(history)
    else:
        kept = f", best at {best_step(history, config.early_stopping)}" if config.early_stopping else ""
        print(f"{output / SPEECHLM}: {history[-1]['step']} steps{kept}")
        packed = output / TRAINING / MEMORY
        if packed.is_file():
            memory = json.loads(packed.read_text(encoding="utf-8"))
            print(f"frozen weights: {memory['after'] / 1e6:.1f} MB in place of {memory['before'] / 1e6:.1f} MB")


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
    with Terminal() as terminal:
        watcher = Watcher(note=terminal.note)
        quantize_speechlm(model_folder(given), Corpus.load(Path(given.corpus)), config, Path(given.output), watcher)
    print(f"{given.output}: {config.name} {config.bits}, simulated")


def evaluate(given: argparse.Namespace) -> None:
    """Score a SpeechLM, or a vocoder alone."""
    if given.vocoder is not None:
        from sparq.speech_commands import evaluate_vocoder

        evaluate_vocoder(given)
        return
    from sparq.config import EvaluationConfig
    from sparq.corpus.corpus import Corpus
    from sparq.evaluation.scoring import assess
    from sparq.speech.recogniser import load_recogniser

    config = EvaluationConfig(sentences=given.sentences, beam=given.beam, max_pieces=given.max_pieces)
    held_out = Corpus.load(Path(given.corpus)).utterances("held_out", given.source)
    result = assess(load_model(given), held_out, load_recogniser(given.recogniser), config)
    if given.json:
        print_json(dataclasses.asdict(result))
        return
    for name, value in dataclasses.asdict(result.scores).items():
        print(f"{name.replace('_', ' '):28}{'–' if value is None else f'{value:.2f}':>10}")
    for task, value in result.accuracy.items():
        print(f"{'next-token accuracy ' + task:28}{value:10.2f} %")


def units(given: argparse.Namespace) -> None:
    """Print units."""
    from sparq.corpus.codebook import load_codebook, load_extractor
    from sparq.speech.audio import load_audio
    from sparq.speech.units import merge_repeats

    extractor = load_extractor(load_codebook(given.codebook))
    extracted = extractor.extract([load_audio(source) for source in _audio(given.files)])
    sequences = [(merge_repeats(raw)[0] if given.merged else raw).tolist() for raw in extracted]
    if given.json:
        print_json([{"file": name, "units": found} for name, found in zip(given.files, sequences, strict=True)])
        return
    for found in sequences:
        print(" ".join(map(str, found)))


def export(given: argparse.Namespace) -> None:
    """Write a SpeechLM as a folder to pass on."""
    from sparq.language.card import copy_card

    output = _free_for_speechlm(given)
    load_model(given).save(output, half=given.half, complete=not given.lean)
    copy_card(Path(given.model), output)
    print(f"{output}: {_megabytes(output.rglob('*'))}")


def deploy(given: argparse.Namespace) -> None:
    """Write a SpeechLM that is really smaller."""
    from sparq.deployment import DeploymentConfig
    from sparq.language.deploy import deploy
    from sparq.language.folder import weight_files

    config = DeploymentConfig(given.bits, given.activations, given.engine)
    output = _free_for_speechlm(given)
    lm = load_model(given)
    whole = 4 * sum(parameter.numel() for parameter in lm.model.parameters())
    deploy(lm, output, config.bits, config.activations, engine=config.engine, complete=not given.lean)
    model = weight_files(output)
    share = sum(path.stat().st_size for path in model) / whole
    print(f"{output}: {config.name}, the model {_megabytes(model)}, {100 * share:.0f} % of float32's")


def _free_for_speechlm(given: argparse.Namespace) -> Path:
    """Give the output folder, if nothing but an older SpeechLM is there."""
    from sparq.artifacts import MANIFEST, read_manifest

    output = Path(given.output)
    if output.exists() and not ((output / MANIFEST).is_file() and read_manifest(output, "speechlm")):
        raise UserError(f"{output}: is in the way (it is no SpeechLM)")
    return output


def _megabytes(paths: Iterable[Path]) -> str:
    return f"{sum(path.stat().st_size for path in paths if path.is_file()) / 1e6:.1f} MB"


def assets(given: argparse.Namespace) -> None:
    """List models."""
    from sparq.assets import embedded_names, packaged, shipped, shipped_names

    found = []
    for kind, names, find in (("embedded", embedded_names(), packaged), ("shipped", shipped_names(), shipped)):
        for name in names:
            try:
                found.append({"kind": kind, "name": name, "path": str(find(name)), "missing": None})
            except UserError as error:
                found.append({"kind": kind, "name": name, "path": None, "missing": str(error)})
    if given.json:
        print_json(found)
        return
    for asset in found:
        print(f"{asset['kind']:10}{asset['name']:28}{asset['path'] or asset['missing']}")
