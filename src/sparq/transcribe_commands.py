"""What ``sparq transcribe`` does: find recordings, write down each, resume, and go on past broken ones."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sparq.commands import load_model, print_json, search_options
from sparq.errors import SparqError, UserError

if TYPE_CHECKING:
    import numpy as np

    from sparq.language.listening import Segment
    from sparq.language.speech_lm import SpeechLM
    from sparq.progress import ListeningBar


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
        for one, seconds, segments in _transcripts(given, list(waiting), bar, alone=len(wanted) == 1):
            _write(waiting[one], "".join(written(form, segments, one.name, seconds)))
            bar.say(f"{waiting[one]}: {seconds:.1f} s, {len(segments)} segments")


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
            for one, seconds, segments in _transcripts(given, found, bar, alone=len(found) == 1):
                entries.append(entry(segments, one.name, seconds))
                if form == "text":
                    print(f"{one.name}\t{entries[-1]['text']}", flush=True)
    finally:
        if form == "json" and entries:
            print_json(entries)  # those before a stop, and those beside broken ones


def _model(given: argparse.Namespace) -> SpeechLM:
    from sparq.speech.activity import load_detector

    lm = load_model(given)
    lm.detector = load_detector(given.detector)
    return lm


def _bar(found: list[_Recording], *, quiet: bool) -> ListeningBar:
    from sparq.progress import ListeningBar

    return ListeningBar(len(found), sum(one.stated_seconds for one in found), quiet=quiet)


def _transcripts(
    given: argparse.Namespace, found: list[_Recording], bar: ListeningBar, *, alone: bool
) -> Iterator[tuple[_Recording, float, list[Segment]]]:
    """Give each recording with its seconds and segments; what cannot be read is told and left out.

    Raises:
        UserError: the recording that was asked for alone cannot be read.
        SparqError: at the end, if one of several could not be read.
    """
    from sparq.language.listening import listen
    from sparq.speech.audio import RATE, load_audio

    opened: list[tuple[_Recording, float]] = []
    broken = []

    def waveforms() -> Iterator[np.ndarray]:
        for one in found:
            try:
                waveform = load_audio(one.source)
            except UserError as error:
                if alone:
                    raise
                broken.append(one)
                bar.say(f"sparq: {error}", error=True)
                continue
            opened.append((one, len(waveform) / RATE))
            yield waveform

    if not found:
        return
    heard = listen(_model(given), waveforms(), search_options(given), batch=given.batch, words=given.words)
    segments: list[Segment] = []
    before = 0.0
    for index, segment in heard:
        one, seconds = opened[index]
        if segment is not None:
            segments.append(segment)
            bar.move(index, before + segment.end)
            continue
        before += seconds
        bar.move(index + 1, before)
        yield one, seconds, segments
        segments = []
    if broken:
        raise SparqError(f"{len(broken)} of {len(found)} recordings could not be read (told above)")
