"""How well a vocoder gives back what was said and who said it, from the units of recordings it never heard.

Raw units keep the timing of the recording; merged ones are what a language model over merged units says, so that their
durations are predicted. Every utterance is spoken in its speaker's voice, as far as the vocoder can, and heard
between the edges that ``SpeechLM.speak`` gives it (:mod:`sparq.speech.edges`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sparq.errors import UserError
from sparq.evaluation.recognition import word_error_rate
from sparq.evaluation.speech_distance import SpeechDistance, speech_distance
from sparq.speech.edges import from_onset, to_silence
from sparq.speech.recogniser import Recogniser
from sparq.speech.speaker import SpeakerEncoder
from sparq.speech.training_segments import Recording
from sparq.speech.units import Units, merge_repeats
from sparq.speech.vocoder import Vocoder


@dataclasses.dataclass(frozen=True)
class Resynthesis:
    """What was measured of a vocoder.

    Attributes:
        wer: word error rate in percent of what the judge hears; of the recordings themselves under "recordings".
        distance: from the recordings.
        similarity: cosine of the speaker embeddings of recording and spoken waveform, on average; empty without a
            speaker encoder.
        utterances: how many were spoken.
    """

    wer: Mapping[str, float]
    distance: Mapping[str, SpeechDistance]
    similarity: Mapping[str, float]
    utterances: int


def speak_units(
    vocoder: Vocoder, units: Sequence[Units], speakers: np.ndarray | None = None
) -> dict[str, list[np.ndarray]]:
    """Speak raw units as they are, and merged with predicted durations; a waveform of each utterance."""
    merged = [merge_repeats(one)[0] for one in units]
    return {
        "raw units": vocoder.synthesize(units, merged=False, speaker=speakers),
        "merged units": vocoder.synthesize(merged, merged=True, speaker=speakers),
    }


def spoken_word_errors(
    spoken: Mapping[str, Sequence[np.ndarray]], texts: Sequence[str], judge: Recogniser
) -> dict[str, float]:
    """Say which percentage of the words of texts a judge does not hear in each way in which they are spoken."""
    given = {
        name: [np.concatenate(list(to_silence(from_onset([wave])))) for wave in waves] for name, waves in spoken.items()
    }
    return {name: word_error_rate(texts, judge.transcribe(waves)).wer for name, waves in given.items()}


def resynthesis(
    vocoder: Vocoder, recordings: Sequence[Recording], judge: Recogniser, encoder: SpeakerEncoder | None
) -> Resynthesis:
    """Measure a vocoder.

    Args:
        vocoder: whose codebook made the units of the recordings.
        recordings: with text, held out from its training.
        judge: hears what is said.
        encoder: hears who speaks; None leaves that out.

    Raises:
        UserError: there are no recordings with text.
    """
    chosen = [recording for recording in recordings if recording.text and len(recording.units)]
    if not chosen:
        raise UserError("resynthesis: there is not one recording whose text is known")
    waves = [recording.waveform for recording in chosen]
    spoken = speak_units(vocoder, [recording.units for recording in chosen], _speakers(vocoder, chosen))
    texts = [str(recording.text) for recording in chosen]
    wer = {"recordings": word_error_rate(texts, judge.transcribe(waves)).wer}
    wer |= spoken_word_errors(spoken, texts, judge)
    distance = {name: speech_distance(waves, said, vocoder.rate) for name, said in spoken.items()}
    similarity: dict[str, float] = {}
    if encoder is not None:
        real = encoder.embed(waves)
        similarity = {name: float((encoder.embed(said) * real).sum(1).mean()) for name, said in spoken.items()}
    return Resynthesis(wer, distance, similarity, len(chosen))


def _speakers(vocoder: Vocoder, recordings: Sequence[Recording]) -> np.ndarray | None:
    """Give the voice of each utterance: by its name, or, of a speaker that the vocoder does not know, by itself."""
    if vocoder.voices is None:
        return None
    named = vocoder.voices.names
    return np.stack([
        vocoder.voices.find(recording.speaker if recording.speaker in named else recording.waveform)
        for recording in recordings
    ])  # fmt: skip
