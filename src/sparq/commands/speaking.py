"""What is said aloud: ``sparq speak`` and ``continue``, and the training of a vocoder, ``sparq vocoder``."""

from __future__ import annotations

import argparse
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparq.commands.arguments import (
    add_command,
    add_device,
    add_model,
    add_overwrite,
    add_search,
    add_settings,
    load_model,
    read_settings,
    search_options,
)
from sparq.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from sparq.language.generation import GenerationOptions


def add_speak(made: Any) -> None:
    """Declare ``sparq speak``."""
    command = add_command(made, "speak", speak, "Read text out", as_json=False)
    command.add_argument("text", help="the text, or '-' for standard input")
    text = "a .wav, .flac, .ogg or .mp3 file, or '-' for standard output (wav, as it is spoken)"
    command.add_argument("-o", "--output", required=True, help=text)
    _add_voice(command, "default: the vocoder's own")
    command.add_argument("--stream", action="store_true", help="write the file as it is spoken; greedy by default")
    command.add_argument("--raw", action="store_true", help="to standard output: 16-bit samples without a header")
    add_model(command)
    add_device(command)
    add_search(command)


def speak(given: argparse.Namespace) -> None:
    """Read text out."""
    to_standard_output = given.output == "-"
    if given.raw and not to_standard_output:
        raise UserError(f"--raw: goes with -o - (standard output), not with {given.output}")
    streamed = given.stream or to_standard_output
    if not to_standard_output:
        _require_place(given.output)
    lm, text = load_model(given), _text(given.text)

    from sparq.language.speech_lm import SPEAKING
    from sparq.speech.audio import RATE, stream_audio

    options = search_options(given, None if streamed else SPEAKING)
    if not streamed:
        _save_spoken(given, lm.speak(text, options, voice=given.voice))
        return

    begun = time.perf_counter()
    arrivals: list[float] = []

    def arriving(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for chunk in chunks:
            arrivals.append(time.perf_counter() - begun)
            yield chunk

    target = sys.stdout.buffer if to_standard_output else given.output
    rate = lm.vocoder.rate if lm.vocoder else RATE
    samples = stream_audio(target, arriving(lm.stream(text, options, voice=given.voice)), rate, raw=given.raw)
    told = f"{given.output}: {samples / rate:.1f} s, the first of it after {arrivals[0]:.2f} s"
    print(told, file=sys.stderr if to_standard_output else sys.stdout)


def add_continue(made: Any) -> None:
    """Declare ``sparq continue``."""
    text = "Continue a text ('-' for standard input), or the speech in an audio file"
    command = add_command(made, "continue", continue_, text, as_json=False)
    command.add_argument("beginning")
    command.add_argument("-o", "--output", help="the audio file that continued speech goes to")
    _add_voice(command, "of continued speech; default: that of the beginning")
    add_model(command)
    add_device(command)
    add_search(command)


def continue_(given: argparse.Namespace) -> None:
    """Continue text or speech."""
    if not _is_audio(given.beginning):
        for name, value in (("-o", given.output), ("--voice", given.voice)):
            if value is not None:
                raise UserError(f"{name}: {value} (expected with an audio file; text is continued on standard output)")
        lm = load_model(given)
        print(lm.continue_text(_text(given.beginning), search_options(given, _creative())))
        return
    if given.output is None:
        raise UserError("-o: missing (expected a file for the continued speech)")
    _require_place(given.output)
    lm = load_model(given)
    options = search_options(given, _creative())
    _save_spoken(given, lm.continue_speech(given.beginning, options, voice=given.voice))


def _creative() -> GenerationOptions:
    from sparq.language.speech_lm import CREATIVE

    return CREATIVE


def _is_audio(beginning: str) -> bool:
    """Whether something to be continued is audio, not text: by its name, as a pipe, or by what is in the file.

    Raises:
        UserError: a file without audio.
    """
    from sparq.corpus.recording import is_audio
    from sparq.speech.audio import read_header

    path = Path(beginning)
    if is_audio(path):
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # no file, and the second for what cannot be the name of one
        return False
    if stat.S_ISREG(mode) and not read_header(path)[0]:
        raise UserError(f"{beginning}: is a file, and not audio (a text in a file is given by '-', standard input)")
    return not stat.S_ISDIR(mode)


def add_vocoder(made: Any) -> None:
    """Declare ``sparq vocoder``."""
    text = "Train a vocoder on a corpus that kept its audio"
    command = add_command(made, "vocoder", vocoder, text, as_json=False, resumes=True)
    command.add_argument("corpus", help="a corpus folder")
    command.add_argument("-o", "--output", required=True, help="a folder")
    add_overwrite(command)
    command.add_argument("--preset", default="small", help="small, paper or paper-384")
    add_settings(command, "the training, such as steps=1000")


def vocoder(given: argparse.Namespace) -> None:
    """Train a vocoder."""
    from sparq.config import VocoderTrainingConfig
    from sparq.corpus.corpus import Corpus
    from sparq.making import vocoder_folder

    config = read_settings(VocoderTrainingConfig, {"preset": given.preset}, given)
    vocoder_folder(config, Corpus.load(Path(given.corpus)), Path(given.output), overwrite=given.overwrite)
    print(given.output)


def _add_voice(command: Any, default: str) -> None:
    text = f"a voice of the vocoder, by name, or a recording of another ({default})"
    command.add_argument("--voice", metavar="NAME|FILE", help=text)


def _text(given: str) -> str:
    if given != "-":
        return given
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: byte {error.start} is not UTF-8 text") from error


def _require_place(output: str) -> None:
    """Find out before the work that speech can be written there."""
    from sparq.artifacts import require_writable
    from sparq.speech.audio import check_suffix

    check_suffix(Path(output))
    require_writable(Path(output))


def _save_spoken(given: argparse.Namespace, spoken: tuple[Any, int]) -> None:
    from sparq.speech.audio import save_audio

    waveform, rate = spoken
    save_audio(given.output, waveform, rate)
    print(f"{given.output}: {len(waveform) / rate:.1f} s")
