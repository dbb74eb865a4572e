"""What ``sparq transcribe`` is asked for: which recordings, in which format, and the file of each transcript."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from sparq.errors import UserError


@dataclasses.dataclass(frozen=True)
class Recording:
    """A file or standard input, where its transcript goes under the folder of ``-o``, and what there is to hear."""

    name: str
    source: Path | IO[bytes]
    place: Path

    @property
    def stated_seconds(self) -> float:
        """How long it says that it is; 0 where it does not say."""
        from sparq.speech.audio import read_header

        return read_header(self.source)[1] if isinstance(self.source, Path) else 0.0


def find_recordings(paths: Sequence[str]) -> list[Recording]:
    """Find the recordings that were named: files, those of folders, and standard input.

    Those of folders that cannot be read without ffmpeg are told and passed over where it is missing.

    Raises:
        UserError: a folder without recordings.
    """
    found = []
    for given in paths:
        path = Path(given)
        if given == "-":
            found.append(Recording("standard input", sys.stdin.buffer, Path("standard-input")))
        elif path.is_dir():
            found += [Recording(str(one), one, one.relative_to(path)) for one in _recordings_in(path)]
        else:
            found.append(Recording(given, path, Path(path.name)))
    return list(dict.fromkeys(found))


def _recordings_in(folder: Path) -> list[Path]:
    from sparq.corpus.recording import audio_below
    from sparq.speech.audio import SUFFIXES
    from sparq.speech.foreign_audio import FOREIGN_SUFFIXES, has_ffmpeg, is_foreign

    inside = [one for one in audio_below(folder) if one.is_file()]
    if not inside:
        known = sorted((*SUFFIXES, *FOREIGN_SUFFIXES))
        raise UserError(f"{folder}: holds no recordings (files that end in {', '.join(known)})")
    heard = inside if has_ffmpeg() else [one for one in inside if not is_foreign(one)]
    if len(heard) < len(inside):
        of_them = f"{len(inside) - len(heard)} of {len(inside)} recordings need ffmpeg, which is not there"
        told = f"{folder}: {of_them} (or convert them to .wav or .flac)"
        if not heard:
            raise UserError(told)
        print(f"sparq: {told}; they are passed over", file=sys.stderr)
    return heard


def transcript_format(given: argparse.Namespace) -> str:
    """Give the format that was asked for, or else that of the file.

    Raises:
        UserError: another format beside ``--json``, or one that is not that of the file.
    """
    from sparq.language.transcript import FORMATS

    if given.json and given.format not in {None, "json"}:
        raise UserError(f"--format: {given.format} (does not go with --json)")
    asked = "json" if given.json else given.format
    output = Path(given.output or "")
    of_file = {suffix: form for form, suffix in FORMATS.items()}.get(output.suffix.lower())
    if asked and of_file not in {None, asked} and not output.is_dir():
        raise UserError(f"{'--json' if given.json else f'--format: {asked}'} (does not fit {given.output})")
    return asked or of_file or "text"


def transcript_files(given: argparse.Namespace, form: str, found: list[Recording]) -> list[tuple[Recording, Path]]:
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
    made: dict[Path, Recording] = {}
    for one in found:
        kept = one.place.suffix if alike[one.place.with_suffix("")] > 1 else ""
        target = output / one.place.with_suffix(f"{kept}{suffix}")
        if target in made:
            raise UserError(f"{one.name}: {target} is already for {made[target].name}; transcribe them apart")
        made[target] = one
    return [(one, target) for target, one in made.items()]
