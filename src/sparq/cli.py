"""The command line: parse, call one function, print.

Exit code 0 when it worked, 2 for what the user gave, 1 for what broke, 130 when it was stopped; errors are one line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparq.errors import SparqError, UserError

if TYPE_CHECKING:
    from sparq.language.generation import GenerationOptions
    from sparq.language.speech_lm import SpeechLM

Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    _quiet_libraries()
    given = _parser().parse_args(arguments)
    try:
        given.call(given)
    except SparqError as error:
        print(f"sparq: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sparq: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if given.debug:
            raise
        text = " ".join(str(error).split())[:300]
        print(f"sparq: {type(error).__name__}: {text} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _quiet_libraries() -> None:
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _load(given: argparse.Namespace) -> SpeechLM:
    import sparq

    return sparq.load(given.model)


def _options(given: argparse.Namespace) -> GenerationOptions | None:
    from sparq.language.generation import GenerationOptions

    if given.beam > 1:
        return GenerationOptions(method="beam", beams=given.beam)
    if given.temperature is not None:
        return GenerationOptions(method="sample", temperature=given.temperature, top_p=given.top_p, seed=given.seed)
    return None


def _demo(given: argparse.Namespace) -> None:
    given.recipe = "demo"
    _run(given)


def _run(given: argparse.Namespace) -> None:
    from sparq.paper.summary import finish
    from sparq.pipeline import Watcher
    from sparq.progress import Terminal
    from sparq.recipe import load_recipe

    recipe = load_recipe(given.recipe, given.settings)
    with Terminal(quiet=given.json) as terminal:
        rows, report = finish(recipe, Watcher(terminal.stage, terminal.training, terminal.note))
    if given.json:
        _print_json({"rows": rows, "report": str(report)})
        return
    terminal.table(rows)
    print(f"report: {report}")


def _adapt(given: argparse.Namespace) -> None:
    from sparq.config import AdaptationConfig
    from sparq.corpus.corpus import Corpus
    from sparq.pipeline import adapt_speechlm
    from sparq.progress import Terminal
    from sparq.schema import parse, with_overrides

    config = parse(AdaptationConfig, with_overrides({"epochs": 1}, given.settings), "sparq adapt")
    with Terminal(quiet=given.json) as terminal:
        training = adapt_speechlm(
            _load(given), Corpus.load(Path(given.corpus)), given.sink, config, Path(given.output), terminal.training
        )
    if given.json:
        _print_json(training.history)
    else:
        print(f"{given.output}/speechlm: {training.steps} steps")


def _quantize(given: argparse.Namespace) -> None:
    from sparq.corpus.corpus import Corpus
    from sparq.pipeline import calibration_batches
    from sparq.quantization import QuantizationConfig, quantize

    config = QuantizationConfig(
        method=given.method,
        weight_bits=given.weight_bits,
        activation_bits=given.activation_bits,
        alpha=given.alpha,
        calibration_sequences=given.calibration,
    )
    lm = _load(given)
    corpus = Corpus.load(Path(given.corpus))
    quantize(lm.model, config, calibration_batches(corpus, lm.vocabulary, config.calibration_sequences))
    lm.save(given.output)
    print(f"{given.output}: {config.method} {config.bits}, simulated")


def _evaluate(given: argparse.Namespace) -> None:
    import dataclasses

    from sparq.config import EvaluationConfig
    from sparq.corpus.corpus import Corpus
    from sparq.evaluation.scoring import assess
    from sparq.speech.recogniser import load_recogniser

    config = EvaluationConfig(sentences=given.sentences, beam=given.beam)
    held_out = Corpus.load(Path(given.corpus)).utterances("held_out")
    result = assess(_load(given), held_out, load_recogniser(given.recogniser), config)
    if given.json:
        _print_json(dataclasses.asdict(result))
        return
    for name, value in dataclasses.asdict(result.scores).items():
        print(f"{name.replace('_', ' '):24}{value:10.2f}")
    for task, value in result.accuracy.items():
        print(f"{'next-token accuracy ' + task:24}{value:10.2f} %")


def _outliers(given: argparse.Namespace) -> None:
    import dataclasses

    from sparq.corpus.corpus import Corpus
    from sparq.evaluation.scoring import outliers_by_modality

    lm = _load(given)
    held_out = Corpus.load(Path(given.corpus)).utterances("held_out")[: given.sentences]
    found = outliers_by_modality(lm.model, lm.vocabulary, held_out)
    if given.json:
        _print_json({kind: dataclasses.asdict(report) for kind, report in found.items()})
        return
    print(f"{'':20}{'maximum infinity norm':>24}{'average kurtosis':>20}")
    for kind, report in found.items():
        print(f"{kind:20}{report.maximum_infinity_norm:24.2f}{report.average_kurtosis:20.2f}")


def _transcribe(given: argparse.Namespace) -> None:
    lm = _load(given)
    files = [sys.stdin.buffer if name == "-" else name for name in given.files]
    texts = lm.transcribe(files, _options(given))
    if given.json:
        _print_json([{"file": name, "text": text} for name, text in zip(given.files, texts, strict=True)])
        return
    for name, text in zip(given.files, texts, strict=True):
        print(text if len(texts) == 1 else f"{name}\t{text}")


def _speak(given: argparse.Namespace) -> None:
    from sparq.speech.audio import save_audio

    text = sys.stdin.read() if given.text == "-" else given.text
    waveform, rate = _load(given).speak(text, _options(given))
    save_audio(given.output, waveform, rate)
    print(f"{given.output}: {len(waveform) / rate:.1f} s")


def _continue(given: argparse.Namespace) -> None:
    from sparq.speech.audio import save_audio

    lm = _load(given)
    if Path(given.beginning).suffix.lower() in {".wav", ".flac", ".ogg", ".mp3"}:
        if given.output is None:
            raise UserError("-o: missing (expected a file for the continued speech)")
        waveform, rate = lm.continue_speech(given.beginning, _options(given))
        save_audio(given.output, waveform, rate)
        print(f"{given.output}: {len(waveform) / rate:.1f} s")
    else:
        print(lm.continue_text(given.beginning, _options(given)))


def _corpus(given: argparse.Namespace) -> None:
    from sparq.config import CorpusConfig
    from sparq.corpus.build import build_corpus
    from sparq.schema import parse, with_overrides

    sources = [
        {"kind": given.kind, "path": path, "held_out": given.held_out, "keep_audio": given.keep_audio}
        for path in given.paths
    ]
    data: dict[str, Any] = {"sources": sources, "processes": given.processes}
    if given.codebook:
        data |= {"units": {"name": given.codebook}}
    config = parse(CorpusConfig, with_overrides(data, given.settings), "sparq corpus")
    print(build_corpus(config, Path(given.output), quiet=given.json).summary)


def _units(given: argparse.Namespace) -> None:
    from sparq.corpus.codebook import load_codebook, load_extractor
    from sparq.speech.audio import load_audio
    from sparq.speech.units import merge_repeats

    extractor = load_extractor(load_codebook(given.codebook))
    waves = [load_audio(sys.stdin.buffer if name == "-" else name) for name in given.files]
    for name, units in zip(given.files, extractor.extract(waves), strict=True):
        chosen = merge_repeats(units)[0] if given.merged else units
        if given.json:
            print(json.dumps({"file": name, "units": chosen.tolist()}))
        else:
            print(" ".join(map(str, chosen)))


def _vocoder(given: argparse.Namespace) -> None:
    from sparq.config import VocoderTrainingConfig
    from sparq.corpus.corpus import Corpus
    from sparq.pipeline import make_vocoder
    from sparq.schema import parse, with_overrides

    config = parse(VocoderTrainingConfig, with_overrides({"preset": given.preset}, given.settings), "sparq vocoder")
    make_vocoder(config, Corpus.load(Path(given.corpus)), Path(given.output))
    print(given.output)


def _assets(given: argparse.Namespace) -> None:
    from sparq.assets import embedded, embedded_names, shipped, shipped_names

    found = []
    for kind, names, find in (("embedded", embedded_names(), embedded), ("shipped", shipped_names(), shipped)):
        for name in names:
            try:
                found.append({"kind": kind, "name": name, "path": str(find(name)), "missing": None})
            except UserError as error:
                found.append({"kind": kind, "name": name, "path": None, "missing": str(error)})
    if given.json:
        _print_json(found)
        return
    for asset in found:
        print(f"{asset['kind']:10}{asset['name']:28}{asset['path'] or asset['missing']}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparq", description="One language model that listens, speaks and writes.")
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error came from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_runs(commands)
    _add_models(commands)
    _add_uses(commands)
    _add_data(commands)
    return parser


def _add(
    commands: Any, name: str, call: Callable[[argparse.Namespace], None], text: str, *, as_json: bool = True
) -> Any:
    made = commands.add_parser(name, help=text, description=text)
    made.set_defaults(call=call)
    if as_json:
        made.add_argument("--json", action="store_true", help="print JSON")
    return made


def _add_settings(made: Any, what: str) -> None:
    made.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=f"settings of {what}")


def _add_model(made: Any) -> None:
    made.add_argument("--model", help="a SpeechLM folder (default: the model that ships)")


def _add_search(made: Any) -> None:
    made.add_argument("--beam", type=int, default=1, help="width of the beam search (default 1, greedy)")
    made.add_argument("--temperature", type=float, help="sample instead of searching")
    made.add_argument("--top-p", type=float, default=1.0, help="sample from this share of the probability")
    made.add_argument("--seed", type=int, default=0, help="of the sampling")


def _add_runs(commands: Any) -> None:
    text = "Adapt, quantise and score three attention variants; writes runs/demo/report.html"
    _add_settings(_add(commands, "demo", _demo, text), "the demo recipe")
    made = _add(commands, "run", _run, "Run a recipe: a shipped one by name, or a YAML file")
    made.add_argument("recipe")
    _add_settings(made, "the recipe")


def _add_models(commands: Any) -> None:
    made = _add(commands, "adapt", _adapt, "Adapt a SpeechLM further, to a corpus")
    made.add_argument("corpus", help="a corpus folder")
    made.add_argument("-o", "--output", required=True)
    made.add_argument("--sink", help="none, zero, max, mean or learned (default: the model's own)")
    _add_model(made)
    _add_settings(made, "the adaptation, such as method=lora steps=200")

    made = _add(commands, "quantize", _quantize, "Quantise a SpeechLM (simulated)", as_json=False)
    made.add_argument("corpus", help="a corpus folder, to calibrate on")
    made.add_argument("-o", "--output", required=True)
    made.add_argument("--method", default="smoothquant", help="smoothquant or round")
    made.add_argument("--weight-bits", type=int, default=8)
    made.add_argument("--activation-bits", type=int, default=8)
    made.add_argument("--alpha", type=float, default=0.5)
    made.add_argument("--calibration", type=int, default=256, help="sequences")
    _add_model(made)

    made = _add(commands, "evaluate", _evaluate, "Score a SpeechLM on the held-out part of a corpus")
    made.add_argument("corpus", help="a corpus folder")
    made.add_argument("--sentences", type=int, default=100)
    made.add_argument("--recogniser", default="moonshine-tiny", help="the judge")
    made.add_argument("--beam", type=int, default=1)
    _add_model(made)

    made = _add(commands, "outliers", _outliers, "Measure the outliers of a SpeechLM on the held-out part of a corpus")
    made.add_argument("corpus", help="a corpus folder")
    made.add_argument("--sentences", type=int, default=100)
    _add_model(made)


def _add_uses(commands: Any) -> None:
    made = _add(commands, "transcribe", _transcribe, "Write down what is said in audio files ('-' for standard input)")
    made.add_argument("files", nargs="+", metavar="FILE")
    _add_model(made)
    _add_search(made)

    made = _add(commands, "speak", _speak, "Read text out", as_json=False)
    made.add_argument("text", help="the text, or '-' for standard input")
    made.add_argument("-o", "--output", required=True, help="a .wav, .flac, .ogg or .mp3 file")
    _add_model(made)
    _add_search(made)

    made = _add(commands, "continue", _continue, "Continue a text, or the speech in an audio file", as_json=False)
    made.add_argument("beginning")
    made.add_argument("-o", "--output", help="the audio file that continued speech goes to")
    _add_model(made)
    _add_search(made)


def _add_data(commands: Any) -> None:
    text = "Make a corpus of units out of recordings, or of text that a voice reads out"
    made = _add(commands, "corpus", _corpus, text)
    made.add_argument("paths", nargs="+", metavar="PATH")
    made.add_argument("-o", "--output", required=True)
    made.add_argument("--kind", choices=("audio", "text"), default="audio")
    made.add_argument("--held-out", type=int, default=0, help="utterances kept for evaluation, of each path")
    made.add_argument("--keep-audio", type=int, default=0, help="utterances whose audio is kept, of each path")
    made.add_argument("--codebook", help="a ready codebook: a folder, or 'codebook' for the one that ships")
    made.add_argument("--processes", type=int, default=2)
    made.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")

    made = _add(commands, "units", _units, "Print the units of audio files ('-' for standard input)")
    made.add_argument("files", nargs="+", metavar="FILE")
    made.add_argument("--codebook", default="codebook", help="a folder (default: the one that ships)")
    made.add_argument("--merged", action="store_true", help="merge repeats")

    made = _add(commands, "vocoder", _vocoder, "Train a vocoder on a corpus that kept its audio", as_json=False)
    made.add_argument("corpus", help="a corpus folder")
    made.add_argument("-o", "--output", required=True)
    made.add_argument("--preset", default="small", help="small, paper or paper-384")
    _add_settings(made, "the training, such as steps=1000")

    _add(commands, "assets", _assets, "List the models that travel in packages and those that ship")


if __name__ == "__main__":
    sys.exit(main())
