"""Speech and text made into units: ``sparq corpus``, ``voices`` and ``units``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sparq.commands.arguments import add_command, add_overwrite, count, positive, print_json, read_settings
from sparq.config import KINDS
from sparq.errors import UserError


def add_corpus(made: Any) -> None:
    """Declare ``sparq corpus``."""
    text = "Make a corpus of units out of recordings, or of text that a voice reads out"
    command = add_command(made, "corpus", corpus, text, resumes=True)
    command.add_argument("paths", nargs="+", metavar="PATH")
    command.add_argument("-o", "--output", required=True, help="a folder")
    add_overwrite(command)
    text = "recordings with transcripts (default), text to be voiced or imagined, or one of the two alone"
    command.add_argument("--kind", choices=KINDS, default="audio", help=text)
    command.add_argument("--layout", help="such as librispeech, mls or lhotse:aishell; default: found by looking")
    command.add_argument("--part", dest="parts", action="append", default=[], help="a folder in it (may be repeated)")
    command.add_argument("--limit", type=positive, help="utterances used at most, of each path")
    command.add_argument("--voice", action="append", metavar="NAME", help="who reads text out (may be repeated)")
    command.add_argument("--readers", metavar="CORPUS", help="whose speakers read what is imagined")
    command.add_argument("--held-out", type=count, default=0, help="utterances kept for evaluation, of each path")
    command.add_argument("--keep-audio", type=count, default=0, help="utterances whose audio is kept, of each path")
    command.add_argument("--codebook", help="a ready codebook: a folder, or 'codebook' for the one that ships")
    command.add_argument("--processes", type=positive, default=2)
    command.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")


def corpus(given: argparse.Namespace) -> None:
    """Make a corpus."""
    from sparq.artifacts import read_manifest
    from sparq.config import CorpusConfig
    from sparq.corpus.build import build_corpus
    from sparq.corpus.codebook import load_codebook
    from sparq.corpus.corpus import CODEBOOK

    same = {name: getattr(given, name) for name in ("kind", "layout", "parts", "held_out", "limit", "keep_audio")}
    same |= {"voices": given.voice} if given.voice else {}
    same |= {"readers": given.readers} if given.readers else {}
    sources = [{"path": path, **same} for path in given.paths]
    defaults: dict[str, Any] = {"sources": sources, "processes": given.processes}
    name = given.codebook
    if given.readers and not name:
        read_manifest(Path(given.readers), "corpus")  # refuses what is none
        name = str(Path(given.readers) / CODEBOOK)
    if name:
        book = load_codebook(name)
        defaults |= {
            "units": {"name": name},
            "encoder": {"name": book.encoder_name, "layers": list(book.layers)},
        }
    config, output = read_settings(CorpusConfig, defaults, given), Path(given.output)
    made = build_corpus(config, output, quiet=given.json, overwrite=given.overwrite)
    if given.json:
        print_json(made.statistics)
    else:
        print(f"{given.output}: {made.summary}")


def add_voices(made: Any) -> None:
    """Declare ``sparq voices``."""
    text = "List the voices that read text out, with what each lacks, or hear them"
    command = add_command(made, "voices", voices, text)
    command.add_argument(
        "names", nargs="*", metavar="VOICE", help="these alone; 'kokoro' and 'flite' are all of theirs"
    )
    command.add_argument("--say", metavar="TEXT", help="have the voices read this (default voice: hibari)")
    command.add_argument("--speed", type=float, default=1.0, help="of reading (default 1)")
    command.add_argument("-o", "--output", help="the folder that what they say goes to")


def voices(given: argparse.Namespace) -> None:
    """List voices with what each lacks, or have some of them read a text, each into a file."""
    from sparq.speech.voices import load_voice, members, voice_names

    names = [voice for name in given.names for voice in members(name)]
    if given.say:
        if not given.output:
            raise UserError("--say: expected --output FOLDER with it")
        _say(names or ["hibari"], given)
        return
    found: list[dict[str, str | None]] = []
    for name in names or voice_names():
        try:
            load_voice(name)
            found.append({"name": name, "missing": None})
        except UserError as error:
            found.append({"name": name, "missing": str(error)})
    if given.json:
        print_json(found)
        return
    for voice in found:
        print(f"{voice['name']:24}{voice['missing'] or 'ready'}")


def _say(names: list[str], given: argparse.Namespace) -> None:
    from sparq.artifacts import require_writable
    from sparq.speech.audio import RATE, save_audio
    from sparq.speech.voices import load_voice

    folder = Path(given.output)
    require_writable(folder / "voice.wav")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, object]] = []
    for name in names:
        waveform = load_voice(name).speak(given.say, given.speed).waveform
        path = folder / f"{_file_name(name)}.wav"
        save_audio(path, waveform)
        written.append({"name": name, "path": str(path), "seconds": len(waveform) / RATE})
        if not given.json:
            print(f"{path}: {len(waveform) / RATE:.1f} s", flush=True)
    if given.json:
        print_json(written)


def _file_name(voice: str) -> str:
    """Name the file of what a voice says; a voice of Piper's, ``piper:FILE#SPEAKER``, after both."""
    if not voice.startswith("piper:"):
        return voice
    model, _, speaker = voice.removeprefix("piper:").partition("#")
    return "-".join(filter(None, (Path(model).stem, speaker)))


def add_units(made: Any) -> None:
    """Declare ``sparq units``."""
    command = add_command(made, "units", units, "Print the units of audio files ('-' for standard input)")
    command.add_argument("files", nargs="+", metavar="FILE")
    command.add_argument("--codebook", default="codebook", help="a folder (default: the one that ships)")
    command.add_argument("--merged", action="store_true", help="merge repeats")


def units(given: argparse.Namespace) -> None:
    """Print units."""
    from sparq.corpus.codebook import load_codebook, load_extractor
    from sparq.speech.audio import load_audio
    from sparq.speech.units import merge_repeats

    sources = [sys.stdin.buffer if name == "-" else name for name in given.files]
    extractor = load_extractor(load_codebook(given.codebook))
    extracted = extractor.extract([load_audio(source) for source in sources])
    for name, raw in zip(given.files, extracted, strict=True):
        if not len(raw):
            raise UserError(f"{'standard input' if name == '-' else name}: too short to have units")
    sequences = [(merge_repeats(raw)[0] if given.merged else raw).tolist() for raw in extracted]
    if given.json:
        print_json([{"file": name, "units": found} for name, found in zip(given.files, sequences, strict=True)])
        return
    for found in sequences:
        print(" ".join(map(str, found)))
