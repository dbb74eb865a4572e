"""What ``sparq voices`` does: say which voices are there, and let them be heard."""

from __future__ import annotations

import argparse
from pathlib import Path

from sparq.commands import print_json
from sparq.errors import UserError


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
    from sparq.speech.audio import RATE, save_audio
    from sparq.speech.voices import load_voice

    folder = Path(given.output)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, object]] = []
    for name in names:
        waveform = load_voice(name).speak(given.say, given.speed).waveform
        path = folder / f"{Path(name).stem if name.startswith('piper:') else name}.wav"
        save_audio(path, waveform)
        written.append({"name": name, "path": str(path), "seconds": len(waveform) / RATE})
        if not given.json:
            print(f"{path}: {len(waveform) / RATE:.1f} s", flush=True)
    if given.json:
        print_json(written)
