"""Recordings written down, resumed, and gone on with past broken ones: ``sparq transcribe``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparq.commands.arguments import (
    add_command,
    add_device,
    add_model,
    add_prior,
    add_search,
    load_model,
    model_folder,
    positive,
    print_json,
    search_options,
    starting,
)
from sparq.commands.recordings import (
    Recording,
    find_recordings,
    transcript_files,
    transcript_format,
)
from sparq.errors import SparqError, UserError

if TYPE_CHECKING:
    import numpy as np

    from sparq.language.listening import Segment
    from sparq.language.speech_lm import SpeechLM
    from sparq.language.unfinished import Unfinished
    from sparq.progress import ListeningBar


# Narrower models gain nothing from a second thread (by the clock 9 % in results/deploy_two_threads.json), and lose much
# where the threads have to wait for other programs.
_WIDE = 512


def add_transcribe(made: Any) -> None:
    """Declare ``sparq transcribe``."""
    text = "Write down what is said in recordings of any length"
    command = add_command(made, "transcribe", transcribe, text, resumes=True)
    command.add_argument(
        "paths", nargs="+", metavar="PATH", help="audio files, folders of them, '-' for standard input"
    )
    command.add_argument("-o", "--output", help="a .txt, .srt, .vtt or .json file; any other name is a folder")
    command.add_argument("--format", choices=("text", "srt", "vtt", "json"), help="default: that of the file, or text")
    text = "tell when each word is said (in JSON), and cut subtitles between words"
    command.add_argument("--words", action="store_true", help=text)
    command.add_argument("--overwrite", action="store_true", help="make transcripts anew that are there already")
    text = "hear it in so many ways, 1 to 4: more is slower and surer (default 4)"
    command.add_argument("--views", type=positive, default=4, choices=range(1, 5), metavar="N", help=text)
    command.add_argument("--batch", type=positive, default=16, help="stretches of speech at once (default 16)")
    text = "what tells speech from the rest: silero (default), or loudness, which takes any sound for speech"
    command.add_argument("--detector", default="silero", help=text)
    add_model(command)
    add_device(command)
    add_prior(command, "auto")
    add_search(command)


def transcribe(given: argparse.Namespace) -> None:
    """Write down what is said."""
    given.resumes = given.output is not None  # what was only printed is not kept
    found = find_recordings(given.paths)
    if len(found) == 1 and isinstance(found[0].source, Path) and not found[0].source.exists():
        raise UserError(f"{found[0].name}: no such file")  # said before anything is loaded
    form = transcript_format(given)
    if given.output is not None:
        _into_files(given, form, transcript_files(given, form, found))
    elif form in {"text", "json"} or len(found) == 1:
        _onto_standard_output(given, form, found)
    else:
        raise UserError(f"-o: missing (expected a folder for the {form} files of {len(found)} recordings)")


def _into_files(given: argparse.Namespace, form: str, wanted: list[tuple[Recording, Path]]) -> None:
    from sparq.artifacts import require_writable
    from sparq.language.transcript import written

    waiting = {one: target for one, target in wanted if given.overwrite or not target.exists()}
    if len(waiting) < len(wanted):
        print(f"{len(wanted) - len(waiting)} there already (--overwrite makes them anew)", file=sys.stderr)
    for target in {target.parent: target for target in waiting.values()}.values():
        require_writable(target)
    with starting():
        kept = _unfinished(given, waiting)
    with _bar(list(waiting), quiet=False) as bar:
        for one, seconds, segments in _transcripts(given, kept, bar, alone=len(wanted) == 1):
            _write(waiting[one], "".join(written(form, segments, one.name, seconds)))
            if before := kept[one]:
                before.forget()
            bar.say(f"{waiting[one]}: {seconds:.1f} s, {len(segments)} segment{'s' * (len(segments) != 1)}")


def _unfinished(given: argparse.Namespace, waiting: Mapping[Recording, Path]) -> dict[Recording, Unfinished | None]:
    """Find what is heard already of recordings; of standard input nothing, which is never the same again."""
    from sparq.artifacts import fingerprint, read_manifest
    from sparq.language.prior import resolved
    from sparq.language.unfinished import Unfinished

    found: dict[Recording, Unfinished | None] = dict.fromkeys(waiting)
    if not waiting:
        return found
    model = read_manifest(model_folder(given), "speechlm")
    prior = resolved(given.prior, model.settings.get("prior"))
    settings = (search_options(given), given.detector, given.words, given.views, prior)
    for one, target in waiting.items():
        if isinstance(one.source, Path) and one.source.is_file():
            state = one.source.stat()
            file = (str(one.source.resolve()), state.st_size, state.st_mtime_ns)
            found[one] = Unfinished(target, fingerprint([file, model.fingerprint, settings]))
    return found


def _write(path: Path, text: str) -> None:
    from sparq.artifacts import write_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _onto_standard_output(given: argparse.Namespace, form: str, found: list[Recording]) -> None:
    from sparq.language.transcript import entry, written
    from sparq.speech.audio import RATE, load_audio

    if len(found) == 1 and form != "json":
        (one,) = found
        waveform = load_audio(one.source)
        told = {"views": given.views, "batch": given.batch, "words": given.words}
        heard = _model(given).segments(waveform, search_options(given), **told)
        for part in written(form, heard, one.name, len(waveform) / RATE):
            print(part, end="", flush=True)
        return
    entries = []
    try:
        with _bar(found, quiet=sys.stdout.isatty()) as bar:
            for one, seconds, segments in _transcripts(given, dict.fromkeys(found), bar, alone=len(found) == 1):
                entries.append(entry(segments, one.name, seconds))
                if form == "text":
                    print(f"{one.name}\t{entries[-1]['text']}", flush=True)
    finally:
        if form == "json" and entries:
            print_json(entries)  # those before a stop, and those beside broken ones


def _model(given: argparse.Namespace) -> SpeechLM:
    with starting():
        import torch

        from sparq.speech.activity import load_detector

        lm = load_model(given)
    if lm.prior is None and lm.model.config.hidden_size < _WIDE and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    lm.detector = load_detector(given.detector)
    return lm


def _bar(found: list[Recording], *, quiet: bool) -> ListeningBar:
    from sparq.progress import ListeningBar

    return ListeningBar(len(found), sum(one.stated_seconds for one in found), quiet=quiet)


def _transcripts(
    given: argparse.Namespace, found: Mapping[Recording, Unfinished | None], bar: ListeningBar, *, alone: bool
) -> Iterator[tuple[Recording, float, list[Segment]]]:
    """Give each recording with its seconds and segments; what cannot be read is told and left out.

    Segments are kept in what is unfinished as they come, and those that are there already are not heard again.

    Raises:
        UserError: the recording that was asked for alone cannot be read.
        SparqError: at the end, if one of several could not be read.
    """
    with starting():
        from sparq.language.listening import listen

    opened: list[tuple[Recording, float]] = []
    if not found:
        return

    def until(index: int) -> float:
        kept = found[opened[index][0]]
        return kept.until if kept else 0.0

    options = search_options(given)
    heard = listen(
        _model(given),
        _waveforms(found, opened, bar, alone=alone),
        options,
        views=given.views,
        batch=given.batch,
        words=given.words,
        heard=until,
    )
    segments: list[Segment] = []
    done = 0.0
    for index, segment in heard:
        one, seconds = opened[index]
        kept = found[one]
        if segment is not None:
            segments.append(segment)
            if kept:
                kept.add(segment)
            bar.move(index, done + segment.end)
            continue
        done += seconds
        bar.move(index + 1, done)
        yield one, seconds, kept.segments if kept else segments
        segments = []
    if len(opened) < len(found):
        raise SparqError(f"{len(found) - len(opened)} of {len(found)} recordings could not be read (told above)")


def _waveforms(
    found: Iterable[Recording], opened: list[tuple[Recording, float]], bar: ListeningBar, *, alone: bool
) -> Iterator[np.ndarray]:
    """Read recordings one after another; those that can be read are put down in ``opened``, with their seconds."""
    from sparq.speech.audio import RATE, load_audio

    for one in found:
        try:
            waveform = load_audio(one.source)
        except UserError as error:
            if alone:
                raise
            bar.say(f"sparq: {error}", error=True)
            continue
        opened.append((one, len(waveform) / RATE))
        yield waveform
