"""Defaults that follow the amount of speech, general text without overlap, and what is worth a warning."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparq.config import FINETUNING_METHODS
from sparq.corpus.recording import Recording
from sparq.errors import UserError
from sparq.finetuning import recordings, rehearsal
from sparq.finetuning.defaults import adaptation_config
from sparq.finetuning.recordings import Recordings, look_at
from sparq.finetuning.rehearsal import general_text
from sparq.finetuning.scores import Scores, warnings
from sparq.speech.audio import save_audio

BEFORE = Scores(wer=40.0, words=100, asr_loss=1.0, transcript_perplexity=90.0, text_perplexity=50.0)


@pytest.mark.parametrize(("sentences", "held_out"), [(16, 8), (80, 8), (300, 30), (1000, 100), (20_000, 100)])
def test_a_tenth_of_the_sentences_is_held_out_within_bounds(sentences, held_out):
    assert Recordings("mine", sentences, sentences, 60.0, {16_000: sentences}, 1).held_out == held_out


def test_more_speech_takes_more_work_but_fewer_passes():
    minutes = [5, 15, 60, 240, 600]
    configs = [adaptation_config("lora", 60.0 * count) for count in minutes]
    work = [config.steps * config.batch_bins for config in configs]
    passes = [done / count for done, count in zip(work, minutes, strict=True)]
    assert work == sorted(work)
    assert passes == pytest.approx(sorted(passes, reverse=True), rel=0.02)
    assert all(config.steps >= 5 * config.save_every for config in configs)  # there is something to choose from
    assert all(config.early_stopping and config.task_weights["asr"] > 0.5 for config in configs)
    assert all(config.task_weights["textlm"] > 0 for config in configs)


@pytest.mark.parametrize("method", FINETUNING_METHODS)
def test_methods_and_settings(method):
    config = adaptation_config(method, 600.0, ["learning_rate=0.5", "early_stopping=null"])
    assert f"{config.method}{config.qlora.bits if config.method == 'qlora' else ''}" == method
    assert (config.learning_rate, config.early_stopping) == (0.5, None)
    with pytest.raises(UserError, match="sparq finetune: learning_rate: 0"):
        adaptation_config(method, 600.0, ["learning_rate=0"])


def test_general_text_is_neither_learnt_and_measured_nor_held_out_and_rehearsed(monkeypatch):
    whole = general_text((), ())
    rehearsed, held_out = ([one.text for one in part] for part in (whole.rehearsed, whole.held_out))
    assert (len(rehearsed), len(held_out)) == (160, 40)
    assert not set(rehearsed) & set(held_out)
    assert not any(len(one.units) for one in whole.rehearsed)
    less = general_text([held_out[0].upper()], [f"{rehearsed[1]}!", held_out[0]])
    assert [one.text for one in less.held_out] == held_out[1:]
    assert [one.text for one in less.rehearsed] == [rehearsed[0], *rehearsed[2:]]
    monkeypatch.setattr(rehearsal, "TEXT", "sparq:recipes/nowhere.tsv")
    assert general_text((), ()) == rehearsal.GeneralText()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"wer": 30.0, "text_perplexity": 52.4}, []),
        ({"wer": 30.0, "text_perplexity": 53.0}, ["text perplexity grew by 6 %"]),
        ({"wer": 40.0}, ["word error rate did not fall (40.0 % before, 40.0 % after)"]),
        ({"wer": 41.0, "text_perplexity": None}, ["word error rate did not fall (40.0 % before, 41.0 % after)"]),
    ],
)
def test_what_grew_worse_is_said(changes, told):
    found = warnings(BEFORE, dataclasses.replace(BEFORE, **changes))
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True))


def test_where_nothing_was_misheard_nothing_could_fall():
    perfect = dataclasses.replace(BEFORE, wer=0.0)
    assert warnings(perfect, perfect) == []
    assert len(warnings(perfect, dataclasses.replace(BEFORE, wer=0.1))) == 1


def test_parts_of_a_recording_count_by_their_length(monkeypatch, tmp_path):
    save_audio(tmp_path / "long.wav", np.zeros(8000 * 10, np.float32), 8000)
    parts = [
        Recording("a", tmp_path / "long.wav", "Good morning.", "ann", start=1.0, seconds=2.0),
        Recording("b", tmp_path / "long.wav", "good  morning", "ben", start=4.0),
    ]
    monkeypatch.setattr(recordings, "read_corpus", lambda _, **__: iter(parts))
    assert look_at(tmp_path) == Recordings(tmp_path.name, 2, 1, 8.0, {8000: 2}, 2)


def test_passes_that_are_asked_for_are_not_cut_short_by_steps():
    assert adaptation_config("lora", 600.0).steps is not None
    config = adaptation_config("lora", 600.0, ["epochs=50"])
    assert (config.epochs, config.steps) == (50, None)
    assert adaptation_config("lora", 600.0, ["epochs=50", "steps=7"]).steps == 7
