"""What the commands that speak do, and those around the vocoder: read what was given, call one function, print."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparq.commands import load_model, print_json, read_settings, search_options
from sparq.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from sparq.speech.speaker import SpeakerEncoder
    from sparq.speech.vocoder import Vocoder


def _text(given: str) -> str:
    return sys.stdin.read() if given == "-" else given


def speak(given: argparse.Namespace) -> None:
    """Read text out."""
    to_standard_output = given.output == "-"
    if given.raw and not to_standard_output:
        raise UserError(f"--raw: goes with -o - (standard output), not with {given.output}")
    lm, text, options = load_model(given), _text(given.text), search_options(given)
    if not (given.stream or to_standard_output):
        _save_spoken(given, lm.speak(text, options, voice=given.voice))
        return

    from sparq.speech.audio import RATE, stream_audio

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


def continue_(given: argparse.Namespace) -> None:
    """Continue text or speech."""
    from sparq.speech.audio import SUFFIXES

    if Path(given.beginning).suffix.lower() not in SUFFIXES:
        for name, value in (("-o", given.output), ("--voice", given.voice)):
            if value is not None:
                raise UserError(f"{name}: {value} (expected with an audio file; text is continued on standard output)")
        print(load_model(given).continue_text(_text(given.beginning), search_options(given)))
        return
    if given.output is None:
        raise UserError("-o: missing (expected a file for the continued speech)")
    lm = load_model(given)
    _save_spoken(given, lm.continue_speech(given.beginning, search_options(given), voice=given.voice))


def _save_spoken(given: argparse.Namespace, spoken: tuple[Any, int]) -> None:
    from sparq.speech.audio import save_audio

    waveform, rate = spoken
    save_audio(given.output, waveform, rate)
    print(f"{given.output}: {len(waveform) / rate:.1f} s")


def vocoder(given: argparse.Namespace) -> None:
    """Train a vocoder."""
    from sparq.config import VocoderTrainingConfig
    from sparq.corpus.corpus import Corpus
    from sparq.making import vocoder_folder

    config = read_settings(VocoderTrainingConfig, {"preset": given.preset}, given)
    vocoder_folder(config, Corpus.load(Path(given.corpus)), Path(given.output))
    print(given.output)


def evaluate_vocoder(given: argparse.Namespace) -> None:
    """Score a vocoder alone, on the units of held-out recordings."""
    from sparq.artifacts import require_match
    from sparq.corpus.corpus import Corpus
    from sparq.evaluation.resynthesis import resynthesis
    from sparq.making import ready_made
    from sparq.speech.recogniser import load_recogniser
    from sparq.speech.vocoder import Vocoder

    corpus = Corpus.load(Path(given.corpus))
    folder = ready_made(given.vocoder)
    assert folder is not None
    spoken = Vocoder.load(folder)
    require_match("the vocoder (its codebook)", spoken.codebook, corpus.codebook.fingerprint)
    recordings = corpus.recordings(given.source, "held_out")[: given.sentences]
    encoder = _speaker_encoder(given.speaker_encoder, spoken)
    result = resynthesis(spoken, recordings, load_recogniser(given.recogniser), encoder)
    if given.json:
        print_json(dataclasses.asdict(result))
        return
    columns = ("WER %", "MCD dB", "F0 cents", "gross %", "voicing %", "similarity")
    print(f"{f'{result.utterances} utterances':20}" + "".join(f"{column:>11}" for column in columns))
    for name, wer in result.wer.items():
        line = f"{name:20}{wer:11.1f}"
        if name in result.distance:
            far = result.distance[name]
            line += f"{far.mel_cepstral_distortion:11.2f}{far.f0_rmse:11.0f}"
            line += f"{far.gross_pitch_error:11.1f}{far.voicing_error:11.1f}"
        print(line + (f"{result.similarity[name]:11.3f}" if name in result.similarity else ""))
    if encoder is None:
        print("similarity: not measured (a speaker encoder: pip install --no-deps Resemblyzer==0.1.4)")


def _speaker_encoder(asked: str | None, spoken: Vocoder) -> SpeakerEncoder | None:
    """Load the speaker encoder that was asked for, else the vocoder's own, else the packaged one if it is there."""
    from sparq.speech.speaker import load_speaker_encoder

    name = asked or (spoken.voices.encoder_name if spoken.voices else None)
    if name is not None:
        return load_speaker_encoder(name)
    try:
        return load_speaker_encoder()
    except UserError:
        return None
