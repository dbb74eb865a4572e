"""Early stopping: when it comes, what it keeps, and that a kill changes neither."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_world import rigged
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import EarlyStoppingCallback

from sparq.adaptation.ends import best_step, is_spent
from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.start import new_model
from sparq.adaptation.training import adapt
from sparq.config import AdaptationConfig, EarlyStoppingConfig, LoraConfig
from sparq.errors import UserError

BASE = AdaptationConfig(
    method="full", lora=LoraConfig(rank=2), steps=20, batch_bins=150, learning_rate=3e-3, schedule="constant",
    warmup_steps=0, log_every=1, save_every=2, early_stopping=EarlyStoppingConfig(patience=2),
)  # fmt: skip
LOSSES = [5.0, 4.0, 3.0, 3.5, 3.0, 1.0, 0.0]  # before training, at step 2, 4, ...: the best is step 4, the end step 8


@pytest.fixture
def stream(vocabulary, make_sentences):
    tasks = {"asr": 1.0, "tts": 1.0}
    return ExampleStream(make_sentences(30, shortest=1, longest=3), vocabulary, tasks, BASE.batch_bins)


@pytest.fixture
def make(vocabulary, tiny_shape):
    return lambda: new_model(tiny_shape, vocabulary)


def change(**values):
    return dataclasses.replace(BASE, **values)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 4))
def test_the_end_is_where_transformers_would_end(losses, patience):
    """Against its EarlyStoppingCallback, with the best metric kept as its Trainer keeps it."""
    config = EarlyStoppingConfig(patience=patience)
    callback, state, control = EarlyStoppingCallback(patience), TrainerState(), TrainerControl()
    arguments = TrainingArguments(
        output_dir="unused", metric_for_best_model="held_out/asr/loss", greater_is_better=False, report_to=[]
    )
    for count, loss in enumerate(losses, start=1):
        callback.on_evaluate(arguments, state, control, {"eval_held_out/asr/loss": loss})
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric, state.best_global_step = loss, count
        history = [{"step": step, "held_out/asr/loss": value} for step, value in enumerate(losses[:count], start=1)]
        assert is_spent([{"step": 1, "loss": 9.0}, *history], config) == control.should_training_stop
        assert best_step(history, config) == state.best_global_step
        if control.should_training_stop:
            break


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_stops_and_the_best_weights_are_restored(make, stream, tmp_path, method):
    training = adapt(make(), stream, change(method=method), tmp_path / "early", measure=rigged(LOSSES))
    assert (training.steps, training.kept) == (8, 4)
    assert [entry.get("held_out/asr/loss") for entry in training.history if not entry["step"] % 2] == LOSSES[:5]
    assert not training.model.training
    short = adapt(make(), stream, change(method=method, steps=4, early_stopping=None), tmp_path / "short")
    assert short.kept == 4
    assert same(training.model.state_dict(), short.model.state_dict())
    longer = adapt(make(), stream, change(method=method, steps=8, early_stopping=None), tmp_path / "longer")
    assert not same(training.model.state_dict(), longer.model.state_dict())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_only_grows_worse_stays_as_it_was(make, stream, tmp_path, method):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = adapt(model, stream, change(method=method), tmp_path, measure=rigged([1.0, 2.0, 1.0]))
    assert (training.steps, training.kept) == (4, 0)
    assert same(training.model.state_dict(), before)


def test_the_end_is_measured_too(make, stream, tmp_path):
    training = adapt(make(), stream, change(steps=5), tmp_path, measure=rigged([3.0, 2.0, 2.5, 1.0]))
    assert (training.steps, training.kept) == (5, 5)
    assert training.history[-1]["held_out/asr/loss"] == 1.0


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 7, 8])
def test_a_kill_changes_neither_the_best_nor_the_patience(make, stream, tmp_path, killed_at):
    """At step 7 the best checkpoint is older than the one gone on from; at step 8 the patience is spent."""

    def kill(step, share, logged):
        if step == killed_at:
            raise _KilledError

    whole = adapt(make(), stream, BASE, tmp_path / "whole", measure=rigged(LOSSES))
    folder = tmp_path / "killed"
    with pytest.raises(_KilledError):
        adapt(make(), stream, BASE, folder, measure=rigged(LOSSES), report=kill)
    measured = 0 if killed_at == 1 else (killed_at - 1) // 2 + 1
    resumed = adapt(make(), stream, BASE, folder, measure=rigged(LOSSES[measured:]))
    assert (resumed.steps, resumed.kept) == (whole.steps, whole.kept) == (8, 4)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert one | {"seconds": 0} == pytest.approx(other | {"seconds": 0}, rel=1e-6)
    again = adapt(make(), stream, BASE, folder, measure=rigged([]))  # measures nothing: it stays stopped
    assert (again.steps, again.kept) == (8, 4)
    assert same(again.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("measure", [None, lambda _: {"held_out/tts/loss": 1.0}])
def test_nothing_to_stop_by_is_an_error(make, stream, tmp_path, measure):
    with pytest.raises(UserError, match="early_stopping: nothing is held out that asr could be measured on"):
        adapt(make(), stream, BASE, tmp_path, measure=measure)
