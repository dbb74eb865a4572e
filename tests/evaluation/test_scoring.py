"""The scores of a whole SpeechLM; its parts are real but tiny and untrained, but for a judge that is told what to hear."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparq.config import EvaluationConfig
from sparq.corpus.utterance import Utterance
from sparq.errors import UserError
from sparq.evaluation.outliers import outliers
from sparq.evaluation.perplexity import perplexity
from sparq.evaluation.recognition import word_error_rate
from sparq.evaluation.scoring import LIVE, assess, live_measure, outliers_by_modality, sinks_by_modality, task_examples
from sparq.language.likelihood import padded_batches
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS, example
from sparq.language.vocabulary import JointVocabulary
from sparq.speech.duration import DurationPredictor
from sparq.speech.recogniser import Recogniser
from sparq.speech.units import Codebook
from sparq.speech.vocoder import UnitGenerator, Vocoder, VocoderConfig

UNITS = 12
TEXTS = ["the train leaves", "what time is it", "a quarter past ten", "she sells sea shells"]
CONFIG = EvaluationConfig(sentences=3, max_pieces=6)


class Judge(Recogniser):
    """Hears every sentence the same, and keeps what it was given."""

    name = "judge"

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def _transcribe(self, waveform):
        self.given.append(waveform)
        return "what time is it"


class Plain:
    write_text = staticmethod(str)

    @staticmethod
    def write_units(units):
        return "".join(chr(0x4E00 + int(u)) for u in units)


def utterances(count=4):
    random = np.random.default_rng(0)
    return [Utterance(TEXTS[i % 4], random.integers(UNITS, size=10 + i)) for i in range(count)]


@pytest.fixture(scope="module")
def lm():
    lines = [TASKS[task].line(Plain(), text=u.text, units=u.units) for u in utterances(40) for task in ("asr", "tts")]
    vocabulary = JointVocabulary.train(lines, 70, UNITS)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": vocabulary.size, "pad_token_id": vocabulary.pad_id, "eos_token_id": vocabulary.end_id}
    config = LlamaConfig(**shape, **ids, bos_token_id=None, max_position_embeddings=128, initializer_range=0.5)
    codebook = Codebook(np.random.default_rng(0).normal(size=(UNITS, 2)).astype(np.float32), "encoder", "none", (0,))
    shape = VocoderConfig.preset("small", units=UNITS, channels=16, embedding=8)
    vocoder = Vocoder(UnitGenerator(shape), DurationPredictor(UNITS), codebook.fingerprint)
    return SpeechLM(LlamaForCausalLM(config), vocabulary, codebook, vocoder)


def test_assessment_is_made_of_its_parts(lm):
    judge, notes = Judge(), []
    result = assess(lm, utterances(), judge, CONFIG, notes.append)
    chosen = utterances()[:3]
    for task in TASKS:
        made = [example(TASKS[task], lm.vocabulary, text=u.text, units=u.units) for u in chosen]
        likelihood = perplexity(lm.model, made)
        assert result.accuracy[task] == likelihood.next_token_accuracy
        if task == "textlm":
            assert result.scores.text_perplexity == likelihood.perplexity
        if task == "speechlm":
            assert result.scores.speech_perplexity == likelihood.perplexity
    assert result.scores.text_perplexity != result.scores.speech_perplexity
    assert set(result.accuracy) == set(TASKS)
    assert len(judge.given) == len(result.transcripts) == 3
    spoken = [np.trim_zeros(wave, "b").size for wave in judge.given]  # the silence behind it aside
    assert all(samples and samples % 384 == 0 for samples in spoken)
    assert result.heard == ["what time is it"] * 3
    assert result.tts == word_error_rate(TEXTS[:3], list(result.heard))
    assert result.scores.tts_wer == result.tts.wer == pytest.approx(100 * (4 + 0 + 4) / (3 + 4 + 4))
    assert result.asr == word_error_rate(TEXTS[:3], list(result.transcripts))
    assert result.scores.asr_wer == result.asr.wer
    assert set(result.outliers) == {"text", "speech", "speech with text"}
    assert result.outliers == outliers_by_modality(lm.model, lm.vocabulary, chosen)
    assert notes == ["perplexity", "outliers", "listening", "speaking"]


def test_outliers_are_those_of_the_sequences_of_each_task(lm):
    found = outliers_by_modality(lm.model, lm.vocabulary, utterances())
    for kind, task in {"text": "textlm", "speech": "speechlm", "speech with text": "asr"}.items():
        made = [example(TASKS[task], lm.vocabulary, text=u.text, units=u.units) for u in utterances()]
        assert found[kind] == outliers(lm.model, padded_batches(made))
        assert found[kind].sequences == 4


@pytest.mark.parametrize(("draws", "method"), [(1, "greedy"), (3, "sample")])
def test_it_listens_and_speaks_as_it_is_told(lm, monkeypatch, draws, method):
    listened, spoke = [], []
    write_down, speak = lm.write_down, lm.speak
    monkeypatch.setattr(
        lm, "write_down", lambda units, options, **more: listened.append(options) or write_down(units, options, **more)
    )
    monkeypatch.setattr(lm, "speak", lambda texts, options: spoke.append(options) or speak(texts, options))
    assess(lm, utterances(), Judge(), dataclasses.replace(CONFIG, beam=3, draws=draws))
    assert (listened[0].method, listened[0].beams, listened[0].max_pieces) == ("beam", 3, 6)
    assert (spoke[0].method, spoke[0].answers, spoke[0].max_pieces) == (method, draws, 6)


def test_it_listens_to_all_the_ways_in_which_something_was_heard(lm, monkeypatch):
    given = []
    write_down = lm.write_down
    monkeypatch.setattr(
        lm, "write_down", lambda *a, views, **more: given.extend(views) or write_down(*a, views=views, **more)
    )
    heard = [dataclasses.replace(one, views=(one.units[:-1],) * n) for n, one in enumerate(utterances(3))]
    assess(lm, heard, Judge(), CONFIG)
    assert [len(views) for views in given] == [0, 1, 2]


def test_nothing_held_out(lm):
    for nothing in ([], [Utterance("", np.zeros(0, np.int64))], [Utterance("…", np.arange(5))]):
        with pytest.raises(UserError, match="not one held-out utterance"):
            assess(lm, nothing, Judge(), CONFIG)
    with pytest.raises(UserError, match="not one utterance for task asr"):
        task_examples(lm.vocabulary, [Utterance("only text", np.zeros(0, np.int64))], "asr")


def test_tasks_without_anything_to_measure_on_have_no_score(lm):
    text, speech = Utterance("only text", np.zeros(0, np.int64)), Utterance("", np.arange(9) % UNITS)
    judge = Judge()
    alone = assess(lm, [text, speech], judge, CONFIG)
    assert dataclasses.astuple(alone.scores)[2:] == (None, None)
    assert (alone.asr, alone.tts, alone.transcripts, alone.heard, judge.given) == (None, None, [], [], [])
    assert set(alone.accuracy) == {"textlm", "speechlm"}
    assert set(alone.outliers) == {"text", "speech"}
    assert alone.outliers == outliers_by_modality(lm.model, lm.vocabulary, [text, speech])
    with pytest.raises(UserError, match="not one held-out utterance"):
        outliers_by_modality(lm.model, lm.vocabulary, [dataclasses.replace(text, tasks=())])
    one = perplexity(lm.model, task_examples(lm.vocabulary, [text], "textlm"))
    assert alone.scores.text_perplexity == one.perplexity
    # Each task takes as many as there may be of those that serve it, whatever stands before them.
    listened = [dataclasses.replace(u, tasks=("asr",)) for u in utterances(2)]
    spoken = [dataclasses.replace(u, tasks=("tts",)) for u in utterances(5)]
    mixed = assess(lm, [text, *listened, *spoken, speech], Judge(), CONFIG)
    assert (mixed.asr.utterances, mixed.tts.utterances) == (2, 3)
    assert mixed.scores.text_perplexity == alone.scores.text_perplexity
    assert mixed.scores.speech_perplexity == alone.scores.speech_perplexity


def test_a_model_without_a_voice(lm):
    silent = SpeechLM(lm.model, lm.vocabulary, lm.codebook)
    with pytest.raises(UserError, match="no vocoder"):
        assess(silent, utterances(), Judge(), CONFIG)


def test_live_measure(lm):
    many = utterances(LIVE + 5)
    values = live_measure(lm.vocabulary, many)(lm.model)
    assert len(values) == 2 * len(TASKS) + 4 * 3
    for task in TASKS:
        likelihood = perplexity(lm.model, task_examples(lm.vocabulary, many[:LIVE], task))
        assert values[f"held_out/{task}/accuracy"] == likelihood.next_token_accuracy
        assert values[f"held_out/{task}/loss"] == pytest.approx(math.log(likelihood.perplexity))
    for kind, report in outliers_by_modality(lm.model, lm.vocabulary, many[:LIVE]).items():
        assert values[f"outliers/{kind}/maximum_infinity_norm"] == report.maximum_infinity_norm
        assert values[f"outliers/{kind}/average_kurtosis"] == report.average_kurtosis
    for kind, report in sinks_by_modality(lm.model, lm.vocabulary, many[:LIVE]).items():
        assert values[f"outliers/{kind}/first_token_attention"] == report.first_token_attention
        assert values[f"outliers/{kind}/massive_activation_ratio"] == report.massive_activation_ratio


def test_live_measure_leaves_out_what_cannot_be_measured(lm):
    """A training must not end because an utterance that was held out is too long for the model, or has no speech."""
    fitting = utterances(2)
    endless = Utterance("and so on", np.arange(5 * UNITS * 4) % UNITS)
    measured = live_measure(lm.vocabulary, [*fitting, endless])(lm.model)
    alone = live_measure(lm.vocabulary, fitting)(lm.model)
    assert measured["held_out/asr/loss"] == pytest.approx(alone["held_out/asr/loss"])
    assert measured["held_out/textlm/loss"] != pytest.approx(alone["held_out/textlm/loss"])
    silent = live_measure(lm.vocabulary, [Utterance("only text", np.zeros(0, np.int64))])(lm.model)
    assert {name.split("/")[1] for name in silent} == {"textlm", "text"}


def test_what_is_too_long_for_the_model_is_not_assessed(lm):
    """A run must not end after its training because of one long recording that was held out."""
    fitting = utterances(2)
    endless = Utterance("and so on", np.arange(5 * UNITS * 4) % UNITS)
    found, alone = (assess(lm, some, Judge(), CONFIG) for some in ([endless, *fitting], fitting))
    assert found.transcripts == alone.transcripts
    assert found.scores.speech_perplexity == pytest.approx(alone.scores.speech_perplexity)
