"""Where the outliers of a model are, measured, told and drawn: ``sparq outliers``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparq.commands.arguments import add_command, load_model, positive, print_json

if TYPE_CHECKING:
    from sparq.language.tasks import Example
    from sparq.paper.outlier_maps import Measured


def add_outliers(made: Any) -> None:
    """Declare ``sparq outliers``."""
    text = "Show where the outliers of a model are: by layer and module, by head, and how large they grow"
    command = add_command(made, "outliers", outliers, text)
    command.add_argument("data", help="a corpus folder, whose held-out part is read; or a text file")
    command.add_argument("--sentences", type=positive, default=100, help="sequences read at most (default 100)")
    command.add_argument("--length", type=positive, default=256, help="of a sequence, if the model is no SpeechLM")
    command.add_argument("-o", "--output", help="a picture: an .svg, .png or .html file")
    text = "a SpeechLM folder (default: the model that ships); with a text file also a transformers model"
    command.add_argument("--model", help=text)


def outliers(given: argparse.Namespace) -> None:
    """Measure, draw and show the outliers of a model."""
    from sparq.artifacts import provenance
    from sparq.evaluation.outliers import outliers as measure_outliers
    from sparq.evaluation.sinks import sinks
    from sparq.language.likelihood import padded_batches
    from sparq.paper.drawing import FORMATS, check_picture
    from sparq.paper.outlier_maps import Measured
    from sparq.progress import Terminal

    picture = None if given.output is None else Path(given.output)
    if picture:
        check_picture(picture, (*FORMATS, ".html"))  # before minutes of work
    model, kinds = _model_and_sequences(given)
    found = {}
    with Terminal(quiet=given.json) as terminal:
        for kind, sequences in kinds.items():
            terminal.note(f"outliers on {kind}, {len(sequences)} sequences")
            outside = measure_outliers(model, padded_batches(sequences))
            terminal.note(f"attention and largest activations on {kind}")
            found[kind] = Measured(outside, sinks(model, padded_batches(sequences)))
    if picture:
        _draw(given, found, picture)
    if given.json:
        told = {
            kind: {**dataclasses.asdict(one.outliers), "sinks": dataclasses.asdict(one.sinks)}
            for kind, one in found.items()
        }
        print_json({"made": provenance(), "measured": told})
        return
    for kind, one in found.items():
        _show(kind, one)
    if picture:
        print(picture)


def _model_and_sequences(given: argparse.Namespace) -> tuple[Any, dict[str, list[Example]]]:
    from sparq.corpus.corpus import Corpus
    from sparq.evaluation.scoring import modalities

    data = Path(given.data)
    if data.is_file():
        return _on_text(given, data)
    held_out = Corpus.load(data).utterances("held_out")[: given.sentences]
    lm = load_model(given)
    return lm.model, modalities(lm.vocabulary, held_out)


def _on_text(given: argparse.Namespace, data: Path) -> tuple[Any, dict[str, list[Example]]]:
    """Take a SpeechLM or any other language model, and lines of text or windows of it."""
    import numpy as np

    from sparq.assets import language_model, ready_made
    from sparq.corpus.utterance import Utterance
    from sparq.evaluation.scoring import task_examples
    from sparq.evaluation.texts import lines_of, windows
    from sparq.language.folder import load_language_model, load_tokenizer

    lines = lines_of(data)
    if given.model is None or ready_made(given.model, must_exist=False):
        lm = load_model(given)
        said = [Utterance(line, np.zeros(0, np.int64)) for line in lines[: given.sentences]]
        return lm.model, {"text": task_examples(lm.vocabulary, said, "textlm")}
    name = language_model(given.model)
    model, tokenizer = load_language_model(name, "--model"), load_tokenizer(name, "--model")
    return model, {"text": windows(tokenizer, lines, given.length)[: given.sentences]}


def _draw(given: argparse.Namespace, found: dict[str, Measured], picture: Path) -> None:
    from sparq.artifacts import provenance
    from sparq.assets import DEFAULT_MODEL
    from sparq.paper.outlier_maps import save_outlier_maps
    from sparq.paper.report import ReportData, write_report

    if picture.suffix.lower() != ".html":
        save_outlier_maps(found, picture)
        return
    name = Path(given.model or DEFAULT_MODEL).name
    sequences = next(iter(found.values())).outliers.sequences
    about = f"Where the outliers of {name} are, measured on {sequences} sequences of each kind."
    write_report(picture, ReportData(name=f"Outliers of {name}", description=about, made=provenance(), maps=found))


def _show(kind: str, one: Measured) -> None:
    from sparq.evaluation.outliers import by_layer
    from sparq.evaluation.sinks import SINK_HEAD

    outside, inside = one.outliers, one.sinks
    largest = max(inside.largest, key=lambda found: found.magnitude)
    unspent = sum(map(sum, inside.unspent)) / sum(map(len, inside.unspent))
    print(f"{kind}, {outside.sequences} sequences")
    print(f"{'maximum infinity norm':30}{outside.maximum_infinity_norm:12.2f}")
    print(f"{'average kurtosis':30}{outside.average_kurtosis:12.2f}")
    of_heads = f"above {100 * SINK_HEAD:.0f} % in {100 * inside.sink_heads:.1f} % of the heads"
    shares = f"{100 * inside.first_token_attention:12.1f} % {of_heads}; unspent {100 * unspent:z.1f} %"
    print(f"{'attention to the first token':30}{shares}")
    place = f"behind layer {largest.layer}, token {largest.position}, channel {largest.channel}"
    sizes = (
        f"{inside.massive_activation_ratio:12.1f} medians; at most {largest.magnitude:.1f}, {largest.ratio:.1f} medians"
    )
    print(f"{'largest activation':30}{sizes}, {place}")
    parts = "".join(f"{name:>9}" for name in ("stream", "norm", "attn", "norm", "MLP"))
    print(f"\n{'':5}{'infinity norm':>45}{'kurtosis':>45}{'first token':>14}{'largest':>10}")
    print(f"{'layer':5}{parts}{parts}{'mean':>7}{'most':>7}{'medians':>10}")
    norms, kurtoses = by_layer(outside.infinity_norms), by_layer(outside.kurtoses)
    for layer, heads in enumerate(inside.by_head):
        numbers = "".join(f"{value:>9.4g}" for value in (*norms[layer], *kurtoses[layer]))
        shares = "".join(f"{100 * share:5.1f} %" for share in (sum(heads) / len(heads), max(heads)))
        print(f"{layer:<5}{numbers}{shares}{inside.ratios[layer]:10.1f}")
    print()
