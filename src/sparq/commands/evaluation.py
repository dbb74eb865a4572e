"""Scores: ``sparq evaluate``, of a SpeechLM or of a vocoder alone."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparq.commands.arguments import add_command, add_device, add_model, add_prior, load_model, positive, print_json
from sparq.errors import UserError

if TYPE_CHECKING:
    from sparq.speech.speaker import SpeakerEncoder
    from sparq.speech.vocoder import Vocoder


def add_evaluate(made: Any) -> None:
    """Declare ``sparq evaluate``."""
    command = add_command(made, "evaluate", evaluate, "Score a SpeechLM on the held-out part of a corpus")
    command.add_argument("corpus", help="a corpus folder")
    command.add_argument("--sentences", type=positive, default=100)
    command.add_argument("--recogniser", default="moonshine-tiny", help="the judge")
    command.add_argument("--source", action="append", help="score this source of the corpus alone (may be repeated)")
    command.add_argument("--beam", type=positive, default=8, help="width of the beam search as it listens")
    command.add_argument("--max-pieces", type=positive, default=300, help="of an answer")
    text = "score this vocoder alone (a folder, or 'vocoder' for the one that ships), on recordings that were kept"
    command.add_argument("--vocoder", metavar="FOLDER", help=text)
    text = "that hears who speaks, for --vocoder: resemblyzer or a WavLM (default: the vocoder's own)"
    command.add_argument("--speaker-encoder", help=text)
    add_model(command)
    add_device(command)
    add_prior(command, "none")


def evaluate(given: argparse.Namespace) -> None:
    """Score a SpeechLM, or a vocoder alone."""
    if given.vocoder is not None:
        _evaluate_vocoder(given)
        return
    from sparq.config import EvaluationConfig
    from sparq.corpus.corpus import Corpus
    from sparq.evaluation.scoring import assess
    from sparq.speech.recogniser import load_recogniser

    config = EvaluationConfig(sentences=given.sentences, beam=given.beam, max_pieces=given.max_pieces)
    held_out = Corpus.load(Path(given.corpus)).utterances("held_out", given.source)
    result = assess(load_model(given), held_out, load_recogniser(given.recogniser), config)
    if given.json:
        print_json(dataclasses.asdict(result))
        return
    for name, value in dataclasses.asdict(result.scores).items():
        print(f"{name.replace('_', ' '):28}{'–' if value is None else f'{value:.2f}':>10}")
    for task, value in result.accuracy.items():
        print(f"{'next-token accuracy ' + task:28}{value:10.2f} %")


def _evaluate_vocoder(given: argparse.Namespace) -> None:
    """Score a vocoder alone, on the units of held-out recordings."""
    from sparq.artifacts import require_match
    from sparq.assets import ready_made
    from sparq.corpus.corpus import Corpus
    from sparq.evaluation.resynthesis import resynthesis
    from sparq.speech.recogniser import load_recogniser
    from sparq.speech.vocoder import Vocoder

    corpus = Corpus.load(Path(given.corpus))
    folder = ready_made(given.vocoder)
    assert folder is not None
    spoken = Vocoder.load(folder, given.device)
    require_match("the vocoder (its codebook)", spoken.codebook, corpus.codebook.meaning)
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
