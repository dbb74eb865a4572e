"""What ``sparq transcribe`` does: find recordings, write down each, resume, and go on past broken ones."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sparq.commands import load_model, model_folder, print_json, search_options
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


@dataclasses.dataclass(frozen=True)
class _Recording:
    """A file or standard input, where its transcript goes under the folder of ``-o``, and what there is to hear."""

    name: str
    source: Path | IO[bytes]
    place: Path

    @property
    def stated_seconds(self) -> float:
        from sparq.speech.audio import stated_seconds

        return stated_seconds(self.source) if isinstance(self.source, Path) else 0.0


def transcribe(given: argparse.Namespace) -> None:
    """Write down what is said."""
    found = _recordings(given.paths)
    form = _form(given)
    if given.output is not None:
        _into_files(given, form, _outputs(given, form, found))
    elif form in {"text", "json"} or len(found) == 1:
        _onto_standard_output(given, form, found)
    else:
        raise UserError(f"-o: missing (expected a folder for the {form} files of {len(found)} recordings)")


def _recordings(paths: Sequence[str]) -> list[_Recording]:
    """Find the recordings that were named: files, those of folders, and standard input.

    Raises:
        UserError: a folder without recordings.
    """
    from sparq.speech.audio import SUFFIXES

    found = []
    for given in paths:
        path = Path(given)
        if given == "-":
            found.append(_Recording("standard input", sys.stdin.buffer, Path("standard-input")))
        elif path.is_dir():
            inside = [one.relative_to(path) for one in path.rglob("*") if one.suffix.lower() in SUFFIXES]
            # What begins with a dot is hidden, or left by another system beside the recording of that name.
            shown = sorted(one for one in inside if not one.name.startswith(".") and (path / one).is_file())
            if not shown:
                raise UserError(f"{given}: holds no recordings (files that end in {', '.join(sorted(SUFFIXES))})")
            found += [_Recording(str(path / one), path / one, one) for one in shown]
        else:
            found.append(_Recording(given, path, Path(path.name)))
    return found


def _form(given: argparse.Namespace) -> str:
    from sparq.language.transcript import FORMATS

    if given.json and given.format not in {None, "json"}:
        raise UserError(f"--format: {given.format} (does not go with --json)")
    of_file = {suffix: form for form, suffix in FORMATS.items()}.get(Path(given.output or "").suffix.lower(), "text")
    return "json" if given.json else given.format or of_file


def _outputs(given: argparse.Namespace, form: str, found: list[_Recording]) -> list[tuple[_Recording, Path]]:
    """Say which file each transcript goes to.

    A name that ends as transcripts do is a file, any other a folder. Where ``a.wav`` and ``a.mp3`` lie side by side,
    their suffixes stay.

    Raises:
        UserError: one file for several recordings, one name for two of them, or a place that cannot be written to.
    """
    from sparq.language.transcript import FORMATS

    output, suffix = Path(given.output), FORMATS[form]
    if output.suffix.lower() in FORMATS.values() and not output.is_dir():
        if len(found) > 1:
            raise UserError(f"-o: {output} (expected a folder for the transcripts of {len(found)} recordings)")
        if not output.parent.is_dir():
            raise UserError(f"-o: {output}: there is no folder {output.parent}")
        return [(found[0], output)]
    above = next(folder for folder in (output, *output.parents) if folder.exists())
    if not above.is_dir():
        raise UserError(f"-o: {above}: is in the way (it is no folder)")
    alike = Counter(one.place.with_suffix("") for one in found)
    made: dict[Path, _Recording] = {}
    for one in found:
        kept = one.place.suffix if alike[one.place.with_suffix("")] > 1 else ""
        target = output / one.place.with_suffix(f"{kept}{suffix}")
        if target in made:
            raise UserError(f"{one.name}: {target} is already for {made[target].name}; transcribe them apart")
        made[target] = one
    return [(one, target) for target, one in made.items()]


def _into_files(given: argparse.Namespace, form: str, wanted: list[tuple[_Recording, Path]]) -> None:
    from sparq.language.transcript import written

    waiting = {one: target for one, target in wanted if given.overwrite or not target.exists()}
    if len(waiting) < len(wanted):
        print(f"{len(wanted) - len(waiting)} there already (--overwrite makes them anew)", file=sys.stderr)
    with _bar(list(waiting), quiet=False) as bar:
        kept = _unfinished(given, waiting)
        for one, seconds, segments in _transcripts(given, kept, bar, alone=len(wanted) == 1):
            _write(waiting[one], "".join(written(form, segments, one.name, seconds)))
            if before := kept[one]:
                before.forget()
            bar.say(f"{waiting[one]}: {seconds:.1f} s, {len(segments)} segment{'s' * (len(segments) != 1)}")


def _unfinished(given: argparse.Namespace, waiting: Mapping[_Recording, Path]) -> dict[_Recording, Unfinished | None]:
    """Find what is heard already of recordings; of standard input nothing, which is never the same again."""
    from sparq.artifacts import fingerprint, read_manifest
    from sparq.language.unfinished import Unfinished

    settings = (search_options(given), given.detector, given.words)
    model = read_manifest(model_folder(given), "speechlm").fingerprint if waiting else ""
    found: dict[_Recording, Unfinished | None] = dict.fromkeys(waiting)
    for one, target in waiting.items():
        if isinstance(one.source, Path) and one.source.is_file():
            state = one.source.stat()
            file = (str(one.source.resolve()), state.st_size, state.st_mtime_ns)
            found[one] = Unfinished(target, fingerprint([file, model, settings]))
    return found


def _write(path: Path, text: str) -> None:
    from sparq.artifacts import write_text

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def _onto_standard_output(given: argparse.Namespace, form: str, found: list[_Recording]) -> None:
    from sparq.language.transcript import entry, written
    from sparq.speech.audio import RATE, load_audio

    if len(found) == 1 and form != "json":
        (one,) = found
        waveform = load_audio(one.source)
        heard = _model(given).segments(waveform, search_options(given), batch=given.batch, words=given.words)
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
    import torch

    from sparq.speech.activity import load_detector

    lm = load_model(given)
    if lm.model.config.hidden_size < _WIDE and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    lm.detector = load_detector(given.detector)
    return lm


def _bar(found: list[_Recording], *, quiet: bool) -> ListeningBar:
    from sparq.progress import ListeningBar

    return ListeningBar(len(found), sum(one.stated_seconds for one in found), quiet=quiet)


def _transcripts(
    given: argparse.Namespace, found: Mapping[_Recording, Unfinished | None], bar: ListeningBar, *, alone: bool
) -> Iterator[tuple[_Recording, float, list[Segment]]]:
    """Give each recording with its seconds and segments; what cannot be read is told and left out.

    Segments are kept in what is unfinished as they come, and those that are there already are not heard again.

    Raises:
        UserError: the recording that was asked for alone cannot be read.
        SparqError: at the end, if one of several could not be read.
    """
    from sparq.language.listening import listen

    opened: list[tuple[_Recording, float]] = []
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
    found: Iterable[_Recording], opened: list[tuple[_Recording, float]], bar: ListeningBar, *, alone: bool
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
