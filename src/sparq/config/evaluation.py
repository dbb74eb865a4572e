"""What is scored, heard and spoken."""

from __future__ import annotations

from dataclasses import dataclass

from sparq.schema import key


@dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """A real recording to transcribe for the report.

    Attributes:
        path: the audio file, or the name of one that travels in a package ("recordings/two_cities.wav").
        reference: what is said in it; null when nobody wrote it down.
    """

    path: str
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is scored, on utterances it never saw.

    Attributes:
        sentences: held-out utterances scored at most.
        beam: width of the beam search as it listens; 1 is greedy.
        draws: how often it says a sentence, to speak what it hears best itself; 1 says it once, greedily. 5 is what
            ``SpeechLM.speak`` does, and takes five times as long.
        max_pieces: longest answer, in pieces.
        recogniser: the judge that hears synthesised speech.
        recordings: real recordings to transcribe for the report.
        spoken: sentences to speak for the report.
    """

    sentences: int = key(100, minimum=1)
    beam: int = key(8, minimum=1)
    draws: int = key(1, minimum=1)
    max_pieces: int = key(300, minimum=1)
    recogniser: str = "moonshine-tiny"
    recordings: tuple[RecordingConfig, ...] = ()
    spoken: tuple[str, ...] = ()
