"""A vocoder measured on recordings: what is spoken, in whose voice, and how it is scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparq.errors import UserError
from sparq.evaluation.resynthesis import resynthesis, speak_units, spoken_word_errors
from sparq.speech import speaker_table
from sparq.speech.audio import RATE
from sparq.speech.duration import DurationPredictor
from sparq.speech.edges import LEAD, TAIL
from sparq.speech.generator import UnitGenerator, VocoderConfig
from sparq.speech.recogniser import Recogniser
from sparq.speech.speaker import SpeakerEncoder
from sparq.speech.speaker_table import SpeakerTable
from sparq.speech.training_segments import Recording
from sparq.speech.vocoder import Vocoder


class Judge(Recogniser):
    """Understands recordings, which are loud, and half of what is spoken."""

    name = "judge"

    def _transcribe(self, waveform):
        return "hello there" if np.abs(waveform).max() > 0.9 else "hello where"


class Ear(SpeakerEncoder):
    """Tells voices apart by their first sample."""

    name, dimension, fingerprint = "ear", 2, "f00d"
    _windows = staticmethod(lambda waveform: [waveform])
    _forward = staticmethod(lambda windows: np.stack([windows[:, 0], 1 + 0 * windows[:, 0]], axis=1))


def vocoder(speaker_dim: int) -> Vocoder:
    torch.manual_seed(0)
    config = VocoderConfig.preset("small", units=9, channels=16, embedding=8, speaker_dim=speaker_dim)
    table = SpeakerTable(("ann", "bob"), np.eye(2, dtype=np.float32), "bob", "ear", "f00d") if speaker_dim else None
    return Vocoder(UnitGenerator(config), DurationPredictor(9, speaker_dim=speaker_dim), "c0debook", table)


@pytest.fixture
def recordings() -> list[Recording]:
    random = np.random.default_rng(0)
    return [
        Recording(
            np.clip(random.normal(size=20 * 384), -1, 1).astype(np.float32), np.repeat(random.integers(0, 9, 10), 2),
            speaker, "Hello there!",
        )
        for speaker in ("ann", "carl")
    ]  # fmt: skip


@pytest.mark.parametrize("speaker_dim", [0, 2])
def test_words_spectra_pitch_and_speakers_are_scored(recordings, speaker_dim, monkeypatch):
    monkeypatch.setattr(speaker_table, "load_speaker_encoder", lambda name: Ear())
    found = resynthesis(
        vocoder(speaker_dim), [*recordings, Recording(recordings[0].waveform, recordings[0].units)], Judge(), Ear()
    )
    assert found.utterances == 2  # one has no text
    assert found.wer == {"recordings": 0, "raw units": 50, "merged units": 50}
    assert set(found.distance) == set(found.similarity) == {"raw units", "merged units"}
    assert all(far.mel_cepstral_distortion > 1 for far in found.distance.values())
    assert all(-1 <= similar <= 1 for similar in found.similarity.values())
    assert resynthesis(vocoder(speaker_dim), recordings, Judge(), None).similarity == {}


def test_everybody_is_spoken_in_their_own_voice_by_name_or_by_the_recording(recordings, monkeypatch):
    monkeypatch.setattr(speaker_table, "load_speaker_encoder", lambda name: Ear())
    spoken = vocoder(2)
    asked = []
    synthesize = spoken.synthesize
    spoken.synthesize = lambda units, **how: asked.append(how["speaker"]) or synthesize(units, **how)
    resynthesis(spoken, recordings, Judge(), None)
    by_name, by_recording = asked[0]
    np.testing.assert_array_equal(by_name, [1, 0])
    np.testing.assert_allclose(by_recording, Ear().embed([recordings[1].waveform])[0])


def test_raw_units_keep_their_time_and_merged_ones_have_it_predicted():
    speaking = vocoder(0)
    units = [np.array([1, 1, 1, 5, 5, 2])]
    waves = speak_units(speaking, units)
    assert len(waves["raw units"][0]) == 6 * 384
    np.testing.assert_array_equal(waves["merged units"][0], speaking.synthesize([[1, 5, 2]], merged=True)[0])


def test_the_judge_hears_speech_between_its_edges():
    loud = np.ones(800, np.float32)
    late = np.concatenate([np.full(8000, 1e-3, np.float32), loud])
    heard = []
    judge = Judge()
    judge._transcribe = lambda waveform: heard.append(waveform) or "hello there"
    assert spoken_word_errors({"raw units": [late], "merged units": [loud]}, ["Hello there!"], judge) == {
        "raw units": 0,
        "merged units": 0,
    }
    assert [len(waveform) for waveform in heard] == [800 + round((LEAD + TAIL) * RATE), 800 + round(TAIL * RATE)]


def test_without_a_text_there_is_nothing_to_score(recordings):
    with pytest.raises(UserError, match="not one recording whose text is known"):
        resynthesis(vocoder(0), [Recording(recordings[0].waveform, recordings[0].units)], Judge(), None)
