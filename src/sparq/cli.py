"""The command line: what each command takes, and how it ends; what it does is in :mod:`sparq.commands`.

Exit code 0 when it worked, 2 for what the user gave, 1 for what broke, 130 when it was stopped; errors are one line on
standard error.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sparq import (
    bench_commands,
    commands,
    corpus_commands,
    finetune_commands,
    outlier_commands,
    paper_commands,
    speech_commands,
    transcribe_commands,
    voice_commands,
)
from sparq.config import FINETUNING_METHODS, KINDS, QUANTIZATION_METHODS, QUANTIZATION_ROUNDINGS, SINKS
from sparq.errors import SparqError

Command = Callable[[argparse.Namespace], None]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} ({self.prog} --help tells more)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    _quiet_libraries()
    given = _parse(arguments)
    try:
        given.call(given)
        sys.stdout.flush()
    except SparqError as error:
        print(f"sparq: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sparq: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Who read the output has gone; what is still buffered must not be complained about at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if given.debug:
            raise
        text = " ".join(str(error).split())[:300]
        print(f"sparq: {type(error).__name__}: {text} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; settings may also stand behind options, where argparse would leave them over."""
    parser = _parser()
    given, left = parser.parse_known_args(arguments)
    if left and not (given.settings_anywhere and all("=" in text and text[0] != "-" for text in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        given.settings += left
    return given


def _quiet_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # PEFT reads a property that transformers has given another name.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # PEFT imports it wherever it is installed; it then complains about a kernel that could not be fetched from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # So does transformers with torchao, which warns of GPU kernels that are not for this machine.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} (expected a whole number ≥ 1)")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} (expected a whole number ≥ 0)")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sparq", description="One language model that listens, speaks and writes.")
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error came from")
    made = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    _add_runs(made)
    _add_finetune(made)
    _add_models(made)
    _add_uses(made)
    _add_data(made)
    _add_paper(made)
    _add_bench(made)
    return parser


def _add(made: Any, name: str, call: Command, text: str, *, as_json: bool = True) -> Any:
    command = made.add_parser(name, help=text, description=text)
    command.set_defaults(call=call, settings_anywhere=False)
    if as_json:
        command.add_argument("--json", action="store_true", help="print JSON")
    return command


def _add_settings(command: Any, what: str) -> None:
    command.add_argument("settings", nargs="*", default=[], metavar="KEY=VALUE", help=f"settings of {what}")
    command.set_defaults(settings_anywhere=True)


def _add_model(command: Any) -> None:
    command.add_argument("--model", help="a SpeechLM folder (default: the model that ships)")


def _add_voice(command: Any, default: str) -> None:
    text = f"a voice of the vocoder, by name, or a recording of another ({default})"
    command.add_argument("--voice", metavar="NAME|FILE", help=text)


def _add_search(command: Any) -> None:
    text = "width of the beam search, 1 for greedy (default: 8 to transcribe, 1 to speak, none to continue)"
    command.add_argument("--beam", type=_positive, help=text)
    command.add_argument("--temperature", type=float, help="sample instead of searching")
    command.add_argument("--top-p", type=float, help="sample from this share of the probability")
    command.add_argument("--seed", type=_count, default=0, help="of the sampling")


def _add_runs(made: Any) -> None:
    text = "Adapt, quantise and score three attention variants; writes runs/demo/report.html"
    _add_settings(_add(made, "demo", commands.demo, text), "the demo recipe")
    command = _add(made, "run", commands.run, "Run a recipe: a shipped one by name, or a YAML file")
    command.add_argument("recipe")
    command.add_argument("--check", action="store_true", help="say what would be read and made, and make nothing")
    _add_settings(command, "the recipe")


def _add_finetune(made: Any) -> None:
    text = "Fine-tune a SpeechLM on your own recordings and their transcripts, and say what that changed"
    command = _add(made, "finetune", finetune_commands.finetune, text)
    command.add_argument("folder", help="recordings with transcripts, in any layout that sparq corpus knows")
    command.add_argument("-o", "--output", required=True, help="the new SpeechLM's folder")
    text = "adapters (lora), the same on frozen weights of 8 or 4 bits, or all weights"
    command.add_argument("--method", choices=FINETUNING_METHODS, default=FINETUNING_METHODS[0], help=text)
    text = "different sentences kept to measure on (default: a tenth, from 8 to 100)"
    command.add_argument("--held-out", type=_positive, help=text)
    command.add_argument("--beam", type=_positive, default=8, help="width of the beam search that is measured with")
    _add_model(command)
    _add_settings(command, "the adaptation, such as steps=200 learning_rate=5e-4")


def _add_models(made: Any) -> None:
    command = _add(made, "adapt", commands.adapt, "Adapt a SpeechLM further, to a corpus")
    command.add_argument("corpus", help="a corpus folder")
    command.add_argument("-o", "--output", required=True, help="a folder; the model is in its folder speechlm")
    command.add_argument("--sink", choices=SINKS, help="default: the model's own")
    _add_model(command)
    _add_settings(command, "the adaptation, such as method=lora steps=200")

    command = _add(made, "quantize", commands.quantize, "Quantise a SpeechLM (simulated)", as_json=False)
    command.add_argument("corpus", help="a corpus folder, to calibrate on")
    command.add_argument("-o", "--output", required=True, help="a folder")
    command.add_argument("--method", default="smoothquant", help=", ".join(QUANTIZATION_METHODS))
    command.add_argument("--rounding", default="nearest", help=f"of the weights: {' or '.join(QUANTIZATION_ROUNDINGS)}")
    command.add_argument("--weight-bits", type=int, default=8)
    command.add_argument("--activation-bits", type=int, default=8)
    command.add_argument("--alpha", type=float, default=0.5)
    command.add_argument("--calibration", type=_positive, default=256, help="sequences")
    command.add_argument("--weight-clip-percent", type=float, default=0.0, help="of the tail of the weights, cut off")
    command.add_argument("--activation-grid", help="symmetric or asymmetric; default: what the method takes")
    command.add_argument("--activation-clip", type=float, default=1.0, help="share of a token's range on the grid")
    command.add_argument("--state-grids", default="token", help="one scale a token, or a head, of q, k and v")
    command.add_argument("--group-size", type=_count, help="inputs that share a scale of the weights; 0 for all")
    command.add_argument("--epochs", type=_positive, default=20, help="of the methods that learn")
    command.add_argument("--batch-sequences", type=_positive, default=1, help="in a step of the methods that learn")
    command.add_argument("--seed", type=_count, default=0, help="of a rotation, or of FlatQuant's start")
    _add_model(command)

    command = _add(made, "evaluate", commands.evaluate, "Score a SpeechLM on the held-out part of a corpus")
    command.add_argument("corpus", help="a corpus folder")
    command.add_argument("--sentences", type=_positive, default=100)
    command.add_argument("--recogniser", default="moonshine-tiny", help="the judge")
    command.add_argument("--source", action="append", help="score this source of the corpus alone (may be repeated)")
    command.add_argument("--beam", type=_positive, default=8, help="width of the beam search as it listens")
    command.add_argument("--max-pieces", type=_positive, default=300, help="of an answer")
    text = "score this vocoder alone (a folder, or 'vocoder' for the one that ships), on recordings that were kept"
    command.add_argument("--vocoder", metavar="FOLDER", help=text)
    text = "that hears who speaks, for --vocoder: resemblyzer or a WavLM (default: the vocoder's own)"
    command.add_argument("--speaker-encoder", help=text)
    _add_model(command)

    text = "Show where the outliers of a model are: by layer and module, by head, and how large they grow"
    command = _add(made, "outliers", outlier_commands.outliers, text)
    command.add_argument("data", help="a corpus folder, whose held-out part is read; or a text file")
    command.add_argument("--sentences", type=_positive, default=100, help="sequences read at most (default 100)")
    command.add_argument("--length", type=_positive, default=256, help="of a sequence, if the model is no SpeechLM")
    command.add_argument("-o", "--output", help="a picture: an .svg, .png or .html file")
    text = "a SpeechLM folder (default: the model that ships); with a text file also a transformers model"
    command.add_argument("--model", help=text)


def _add_uses(made: Any) -> None:
    text = "Write down what is said in recordings of any length"
    command = _add(made, "transcribe", transcribe_commands.transcribe, text)
    command.add_argument(
        "paths", nargs="+", metavar="PATH", help="audio files, folders of them, '-' for standard input"
    )
    command.add_argument("-o", "--output", help="a .txt, .srt, .vtt or .json file; any other name is a folder")
    command.add_argument("--format", choices=("text", "srt", "vtt", "json"), help="default: that of the file, or text")
    text = "tell when each word is said (in JSON), and cut subtitles between words"
    command.add_argument("--words", action="store_true", help=text)
    command.add_argument("--overwrite", action="store_true", help="make transcripts anew that are there already")
    command.add_argument("--batch", type=_positive, default=16, help="stretches of speech at once (default 16)")
    text = "what tells speech from the rest: silero (default), or loudness, which takes any sound for speech"
    command.add_argument("--detector", default="silero", help=text)
    _add_model(command)
    _add_search(command)

    command = _add(made, "speak", speech_commands.speak, "Read text out", as_json=False)
    command.add_argument("text", help="the text, or '-' for standard input")
    text = "a .wav, .flac, .ogg or .mp3 file, or '-' for standard output (wav, as it is spoken)"
    command.add_argument("-o", "--output", required=True, help=text)
    _add_voice(command, "default: the vocoder's first")
    command.add_argument("--stream", action="store_true", help="write the file as it is spoken")
    command.add_argument("--raw", action="store_true", help="to standard output: 16-bit samples without a header")
    _add_model(command)
    _add_search(command)

    text = "Continue a text ('-' for standard input), or the speech in an audio file"
    command = _add(made, "continue", speech_commands.continue_, text, as_json=False)
    command.add_argument("beginning")
    command.add_argument("-o", "--output", help="the audio file that continued speech goes to")
    _add_voice(command, "of continued speech; default: that of the beginning")
    _add_model(command)
    _add_search(command)


def _add_data(made: Any) -> None:
    text = "Make a corpus of units out of recordings, or of text that a voice reads out"
    command = _add(made, "corpus", corpus_commands.corpus, text)
    command.add_argument("paths", nargs="+", metavar="PATH")
    command.add_argument("-o", "--output", required=True, help="a folder")
    text = "recordings with transcripts (default), text to be voiced, or one of the two alone"
    command.add_argument("--kind", choices=KINDS, default="audio", help=text)
    command.add_argument("--layout", help="such as librispeech, mls or lhotse:aishell; default: found by looking")
    command.add_argument("--part", dest="parts", action="append", default=[], help="a folder in it (may be repeated)")
    command.add_argument("--limit", type=_positive, help="utterances used at most, of each path")
    command.add_argument("--voice", action="append", metavar="NAME", help="who reads text out (may be repeated)")
    command.add_argument("--held-out", type=_count, default=0, help="utterances kept for evaluation, of each path")
    command.add_argument("--keep-audio", type=_count, default=0, help="utterances whose audio is kept, of each path")
    command.add_argument("--codebook", help="a ready codebook: a folder, or 'codebook' for the one that ships")
    command.add_argument("--processes", type=_positive, default=2)
    command.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")

    text = "List the voices that read text out, with what each lacks, or hear them"
    command = _add(made, "voices", voice_commands.voices, text)
    command.add_argument(
        "names", nargs="*", metavar="VOICE", help="these alone; 'kokoro' and 'flite' are all of theirs"
    )
    command.add_argument("--say", metavar="TEXT", help="have the voices read this (default voice: hibari)")
    command.add_argument("--speed", type=float, default=1.0, help="of reading (default 1)")
    command.add_argument("-o", "--output", help="the folder that what they say goes to")

    command = _add(made, "units", commands.units, "Print the units of audio files ('-' for standard input)")
    command.add_argument("files", nargs="+", metavar="FILE")
    command.add_argument("--codebook", default="codebook", help="a folder (default: the one that ships)")
    command.add_argument("--merged", action="store_true", help="merge repeats")

    command = _add(
        made, "vocoder", speech_commands.vocoder, "Train a vocoder on a corpus that kept its audio", as_json=False
    )
    command.add_argument("corpus", help="a corpus folder")
    command.add_argument("-o", "--output", required=True, help="a folder")
    command.add_argument("--preset", default="small", help="small, paper or paper-384")
    _add_settings(command, "the training, such as steps=1000")

    command = _add(made, "export", commands.export, "Write a SpeechLM as a folder to pass on", as_json=False)
    command.add_argument("model", help="a SpeechLM folder")
    command.add_argument("-o", "--output", required=True, help="a folder; an older SpeechLM of that name is replaced")
    command.add_argument("--half", action="store_true", help="weights in half precision")
    command.add_argument("--lean", action="store_true", help="without the parts that ship with SpARQ")

    text = "Write a SpeechLM that is really smaller and faster: for a CPU (ONNX Runtime), or a GPU (torch)"
    command = _add(made, "deploy", commands.deploy, text, as_json=False)
    command.add_argument("model", nargs="?", help="a SpeechLM folder (default: the model that ships)")
    command.add_argument("-o", "--output", required=True, help="a folder; an older SpeechLM of that name is replaced")
    command.add_argument("--bits", type=int, default=4, help="of the weights: 4 (default), 8, or 32 (onnx) for float32")
    command.add_argument("--engine", default="onnx", help="what computes: onnx (default; on a CPU) or torch")
    text = "what low-bit weights are multiplied by, with onnx: int8 (default) or float32, which is far slower"
    command.add_argument("--activations", help=text)
    command.add_argument("--lean", action="store_true", help="without the parts that ship with SpARQ")

    _add(made, "assets", commands.assets, "List the models that travel in packages and those that ship")


def _add_paper(made: Any) -> None:
    text = "What the paper says, beside what is measured"
    command = made.add_parser("paper", help=text, description=text)
    parts = command.add_subparsers(required=True, dest="part", metavar="PART")
    _add(parts, "list", paper_commands.list_tables, "Name the paper's tables")
    table = _add(parts, "show", paper_commands.show_table, "Show a table as it is printed, its drops recomputed")
    table.add_argument("table", help="its name, such as 1 or G.1")
    text = "Measure a table or a figure, or all, and show it beside what is printed"
    run = _add(parts, "run", paper_commands.run_tables, text)
    run.add_argument("table", help="1 to 11, G.1, figure3, figure4, or all")
    run.add_argument("--scale", default="demo", help="at which size: the name of a scale that ships, or a YAML file")
    run.add_argument("--seeds", type=_positive, default=1, help="models of every cell; mean and deviation are shown")
    run.add_argument("--ray", metavar="ADDRESS", help="do it on a Ray cluster ('local' for this machine)")
    _add_settings(run, "every model, such as adaptation.steps=50")
    text = "Theorem C.1 at work on random models, and the norms of proposition C.1 in a SpeechLM"
    theory = _add(parts, "theory", paper_commands.show_theory, text)
    theory.add_argument("--before", help="the SpeechLM before it was adapted, for the norms of what changed")
    theory.add_argument("--length", type=_positive, default=256, help="pieces in a sequence (default 256)")
    theory.add_argument("--sequences", type=_positive, default=4, help="that the model writes, of text and of speech")
    theory.add_argument("--seed", type=_count, default=0, help="of the models, and of what the SpeechLM writes")
    _add_model(theory)


def _add_bench(made: Any) -> None:
    text = "Measure a model on this machine"
    command = made.add_parser("bench", help=text, description=text)
    parts = command.add_subparsers(required=True, dest="part", metavar="PART")
    text = "Bytes, memory and speed in torch (float32, bfloat16, int8, 4 bits) and ONNX (float32, int8, 4 bits)"
    deploy = _add(parts, "deploy", bench_commands.deploy, text)
    text = "a SpeechLM, a transformers folder or hub name, or smollm2-135m (default: the model that ships)"
    deploy.add_argument("model", nargs="?", help=text)
    deploy.add_argument("--prompt", type=_positive, default=128, help="tokens read at once (default 128)")
    deploy.add_argument("--tokens", type=_positive, default=32, help="made one after another (default 32)")
    deploy.add_argument("--repeats", type=_positive, default=5, help="of which the fastest counts (default 5)")
    deploy.add_argument("--threads", type=_count, default=0, help="default: as many as torch takes")
    deploy.add_argument("--device", default="cpu", help="where torch computes: cpu (default) or cuda")


if __name__ == "__main__":
    sys.exit(main())
