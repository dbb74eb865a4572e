from __future__ import annotations

import copy
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_world import train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_start import save_pretrained
from torch.nn.functional import cross_entropy

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.start import new_model, pretrained_model
from sparq.adaptation.training import AdaptationTrainer, adapt, last_checkpoint
from sparq.attention import install, installed, load_pretrained
from sparq.config import AdaptationConfig, LoraConfig
from sparq.errors import UserError
from sparq.language.tasks import IGNORED, TASKS

EQUAL = dict.fromkeys(TASKS, 1.0)
BASE = AdaptationConfig(
    method="full", steps=6, batch_bins=200, learning_rate=3e-3, schedule="constant", warmup_steps=0, log_every=1
)


@pytest.fixture
def stream(vocabulary, make_sentences):
    return ExampleStream(make_sentences(30, shortest=1, longest=3), vocabulary, EQUAL, BASE.batch_bins)


@pytest.fixture
def model(vocabulary, tiny_shape):
    return install(new_model(tiny_shape, vocabulary), "max")


def change(**values):
    return dataclasses.replace(BASE, **values)


def logged(training, name):
    return [entry[name] for entry in training.history if name in entry]


def batch_loss(model, batch, *, smoothing=0.0, total=None):
    logits, labels = model(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing)
    return loss / (total or (labels != IGNORED).sum())


def without_dropout(model):
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def test_the_losses_are_those_of_a_plain_loop_with_adam(model, stream, tmp_path):
    """Adam with its decay in the gradient, but of embeddings; means over targets, clipping, a linear rise and fall."""
    config = change(weight_decay=0.1, beta2=0.98, schedule="linear", warmup_steps=2, gradient_clip=0.5)
    without_dropout(model)
    twin = copy.deepcopy(model).train()
    training = adapt(model, stream, config, tmp_path)
    tables = [twin.get_input_embeddings().weight, twin.get_output_embeddings().weight]
    others = [weight for weight in twin.parameters() if all(weight is not table for table in tables)]
    groups = [{"params": tables, "weight_decay": 0.0}, {"params": others}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98), weight_decay=0.1)
    losses, norms, rates = [], [], [3e-3 * share for share in (0, 1 / 2, 1, 3 / 4, 2 / 4, 1 / 4)]
    for rate, batch in zip(rates, stream, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = batch_loss(twin, batch)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)))
        optimizer.step()
        losses.append(float(loss.detach()))
    assert training.steps == 6
    assert logged(training, "loss") == pytest.approx(losses, rel=1e-4)
    assert logged(training, "grad_norm") == pytest.approx(norms, rel=1e-3)
    for trained, expected in zip(training.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-3, atol=1e-5)


def test_accumulated_batches_count_by_their_tokens(model, stream, tmp_path):
    without_dropout(model)
    twin = copy.deepcopy(model)
    training = adapt(model, stream, change(accumulate=3, steps=2, learning_rate=1e-9), tmp_path)
    with torch.no_grad():
        for step in range(2):
            batches = [batch for _, batch in zip(range(3), stream.starting_at(3 * step), strict=False)]
            tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
            expected = sum(batch_loss(twin, batch, total=tokens) for batch in batches)
            assert logged(training, "loss")[step] == pytest.approx(float(expected), rel=1e-4)


def test_labels_are_smoothed(model, stream, tmp_path):
    without_dropout(model)
    twin = copy.deepcopy(model)
    training = adapt(model, stream, change(label_smoothing=0.1, steps=1), tmp_path)
    with torch.no_grad():
        expected = batch_loss(twin, next(iter(stream)), smoothing=0.1)
        assert abs(expected - batch_loss(twin, next(iter(stream)))) > 1e-3
    assert logged(training, "loss")[0] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_losses_go_down(model, stream, tmp_path, method):
    config = change(method=method, lora=LoraConfig(rank=4, alpha=8), steps=60, log_every=10, learning_rate=1e-2)
    training = adapt(model, stream, config, tmp_path)
    losses = logged(training, "loss")
    assert losses[-1] < losses[0] - 0.5
    assert not training.model.training
    assert training.model.config.use_cache
    assert type(training.model).__name__ == "LlamaForCausalLM"
    assert installed(training.model).sink == "max"


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimizer_is_the_one_asked_for(model, stream, tmp_path, name, kind):
    config = change(optimizer=name)
    trainer = AdaptationTrainer(model=model, train_dataset=stream, config=config, args=_quiet(tmp_path))
    model.lm_head.weight.requires_grad_(False)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is kind
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len(list(model.parameters())) - 1


def _quiet(folder):
    from transformers import TrainingArguments

    return TrainingArguments(output_dir=str(folder), max_steps=1, report_to=[], use_cpu=True)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ("linear", [0, 1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", [0, 1 / 3, 2 / 3, 1, 0.9330, 0.75, 0.5, 0.25, 0.0670]),
        ("inverse_sqrt", [0, 1 / 3, 2 / 3, 1, 0.8660, 0.7746, 0.7071, 0.6547, 0.6124]),
    ],
)
def test_schedules(model, stream, tmp_path, schedule, expected):
    training = adapt(model, stream, change(schedule=schedule, warmup_steps=3, steps=9), tmp_path)
    # What is logged with a step is the rate that the step was taken with.
    assert logged(training, "learning_rate") == pytest.approx([3e-3 * share for share in expected], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "warmup"),
    [
        ({"steps": 20}, 2),
        ({"steps": 4}, 0),
        ({"steps": 1000}, 100),
        ({"steps": 10**6}, 2500),
        ({"steps": 20, "warmup_steps": 2500}, 2500),
        ({"steps": 20, "warmup_steps": 0}, 0),
        ({"steps": None}, 100),
    ],
)
def test_the_warm_up_is_a_tenth_of_the_steps_where_none_is_given(model, stream, tmp_path, changes, warmup):
    config = dataclasses.replace(change(warmup_steps=None, minutes=1e-9), **changes)
    training = adapt(model, stream, config, tmp_path)
    arguments = torch.load(next(tmp_path.glob("checkpoint-*")) / "training_args.bin", weights_only=False)
    assert training.steps == 1
    assert arguments.warmup_steps == warmup


def test_what_is_kept_and_shown(model, stream, tmp_path, capfd):
    measured, reported = [], []

    def measure(live):
        measured.append(type(live).__name__)
        live.eval()
        return {"next_token_accuracy": 10.0 + len(measured)}

    config = change(method="lora", lora=LoraConfig(rank=2), steps=10, log_every=3, save_every=4)
    training = adapt(model, stream, config, tmp_path, measure=measure, report=lambda *a: reported.append(a))
    # Every third step, and whenever the model is saved: every fourth, and at the end.
    assert [entry["step"] for entry in training.history] == [3, 4, 6, 8, 9, 10]
    assert measured == ["LlamaForCausalLM"] * 2
    assert [entry.get("next_token_accuracy") for entry in training.history] == [None, 11.0, None, 12.0, None, None]
    for entry in training.history:
        assert {"step", "loss", "learning_rate", "grad_norm", "seconds"} <= entry.keys()
    assert logged(training, "seconds") == sorted(logged(training, "seconds"))
    assert json.loads((tmp_path / "history.json").read_text()) == training.history
    assert [step for step, _, _ in reported] == list(range(1, 11))
    assert [share for _, share, _ in reported] == pytest.approx([step / 10 for step in range(1, 11)])
    assert reported[0][2] == {}
    assert reported[-1][2].keys() >= {"loss", "next_token_accuracy"}
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [3, 4, 6, 8, 9, 10]
    assert [event.value for event in board.Scalars("train/next_token_accuracy")] == [11.0, 12.0]
    shown = capfd.readouterr()
    assert shown.out == ""
    # Checkpoints that follow each other within one tick of the clock make transformers say that it counts by name.
    assert [line for line in shown.err.splitlines() if "mtime may not be reliable" not in line] == []


def test_checkpoints_keep_adapters_sinks_and_attention(model, stream, tmp_path, vocabulary):
    install(model, "learned").save_pretrained(tmp_path / "base")
    base = load_pretrained(tmp_path / "base")
    config = change(method="lora", lora=LoraConfig(rank=2, dropout=0.0), steps=2, save_every=2, learning_rate=1e-2)
    training = adapt(base, stream, config, tmp_path / "run")
    checkpoint = last_checkpoint(tmp_path / "run")
    loaded = load_pretrained(checkpoint).eval()
    assert installed(loaded).sink == "learned"
    batch = next(iter(stream))["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch).logits, training.model(batch).logits, rtol=1e-4, atol=1e-4)
    sinks = [value for name, value in training.model.state_dict().items() if "sink_logit" in name]
    assert len(sinks) == 2
    assert all(value.abs().min() > 0 for value in sinks)


def test_half_precision_stays_in_the_training(model, stream, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    training = adapt(model, stream, change(precision="bfloat16", steps=2), tmp_path)
    batch = next(iter(stream))["input_ids"]
    fresh = install(new_model_like(training.model), "max")
    fresh.load_state_dict(training.model.state_dict())
    with torch.no_grad():
        assert torch.equal(training.model(batch).logits, fresh.eval()(batch).logits)
    assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())


def test_a_processor_that_emulates_bfloat16_takes_float32(model, stream, tmp_path, monkeypatch, caplog):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    twin = copy.deepcopy(model)
    trained = adapt(model, stream, change(precision="bfloat16", steps=2), tmp_path / "emulated").model
    assert "bfloat16 is emulated by this processor" in caplog.text
    plain = adapt(twin, stream, change(precision="float32", steps=2), tmp_path / "plain").model
    assert all(torch.equal(one, two) for one, two in zip(trained.parameters(), plain.parameters(), strict=True))


def new_model_like(model):
    return type(model)(copy.deepcopy(model.config))


def test_the_model_is_the_same_each_time(vocabulary, tiny_shape, stream, tmp_path):
    weights = []
    for name in ("one", "two"):
        config = change(method="lora", lora=LoraConfig(rank=2), steps=3)
        torch.manual_seed(int.from_bytes(name.encode(), "big") % 1000)
        trained = adapt(new_model(tiny_shape, vocabulary), stream, config, tmp_path / name).model
        weights.append(trained.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


SCRIPT = Path(__file__).with_name("small_world.py")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_training_goes_on_as_if_undisturbed(tmp_path, method):
    command = [sys.executable, SCRIPT, tmp_path / "killed", method, "75"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (tmp_path / "killed" / "checkpoint-20").is_dir():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "history.json").exists()
    resumed, undisturbed = train(tmp_path / "killed", method), train(tmp_path / "whole", method)
    assert len(undisturbed.history) == 15
    for one, other in zip(undisturbed.history, resumed.history, strict=True):
        assert one | {"seconds": 0} == pytest.approx(other | {"seconds": 0}, rel=1e-6)
    weights = undisturbed.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_cut_short_is_passed_over(vocabulary, tiny_shape, stream, tmp_path):
    config = change(steps=6, save_every=2)
    make = lambda: new_model(tiny_shape, vocabulary)  # noqa: E731 - short
    whole = adapt(make(), stream, config, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    state = tmp_path / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-note").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    again = adapt(make(), stream, config, tmp_path)
    assert logged(again, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-6)
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_finished_training_is_only_loaded(vocabulary, tiny_shape, stream, tmp_path, method):
    config = change(method=method, lora=LoraConfig(rank=2), steps=3)
    make = lambda: new_model(tiny_shape, vocabulary)  # noqa: E731 - short
    first, second = (adapt(make(), stream, config, tmp_path) for _ in range(2))
    assert second.steps == 3
    assert second.history == first.history
    assert not second.model.training
    state = second.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in first.model.state_dict().items())


def test_time_ends_a_training(vocabulary, tiny_shape, stream, tmp_path):
    config = change(steps=None, minutes=1 / 60, log_every=1000)
    shares = []
    make = lambda: new_model(tiny_shape, vocabulary)  # noqa: E731 - short
    training = adapt(make(), stream, config, tmp_path, report=lambda _, share, __: shares.append(share))
    assert 1 <= training.history[-1]["seconds"] < 10
    assert shares == sorted(shares)
    assert shares[-1] == 1
    again = adapt(make(), stream, config, tmp_path)
    assert again.steps == training.steps  # time spent before counts
    longer = adapt(
        make(), stream, dataclasses.replace(config, minutes=1.2 * training.history[-1]["seconds"] / 60), tmp_path
    )
    assert longer.steps > training.steps


def test_epochs_end_a_training(model, stream, tmp_path):
    training = adapt(model, stream, change(steps=None, epochs=2, accumulate=2), tmp_path)
    assert training.steps == round(2 * stream.batches_per_epoch / 2)


def test_a_loss_that_is_not_finite_is_an_error_before_it_is_saved(model, stream, tmp_path):
    config = change(learning_rate=1e30, gradient_clip=1e9, steps=100, log_every=1000, save_every=3)
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step 3 \(lower learning_rate\?\)"):
        adapt(model, stream, config, tmp_path)
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "cosine", "steps": None, "minutes": 1.0}, "schedule: cosine needs a last step"),
        ({"precision": "float16"}, "precision: float16 needs a GPU"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="half precision is possible with a GPU")
def test_errors_name_the_key(model, stream, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        adapt(model, stream, change(**values), tmp_path)
    assert not any(tmp_path.iterdir())


def test_two_processes_share_the_batches(tmp_path, two_processes):
    """As ``torchrun --nproc-per-node=2`` starts them; what stops early, and which step is kept, they agree on."""
    two_processes([sys.executable, SCRIPT, tmp_path / "two", "full", "5", "1", "2"])
    two = json.loads((tmp_path / "two" / "history.json").read_text())
    one = train(tmp_path / "one", "full", steps=5, accumulate=2).history
    # Each step sees the same batches; only dropout falls elsewhere.
    assert two[-1]["step"] == one[-1]["step"] == 5
    assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=0.02)
    assert [entry["held_out/asr/loss"] for entry in (two[0], two[-1])] == [1.0, 2.0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_adapters_leave_a_tokenizers_own_words_alone(extended, make_sentences, tmp_path, method):
    said = make_sentences(30, shortest=1, longest=3)
    save_pretrained("llama", tmp_path / "text", tie_word_embeddings=True)
    model = pretrained_model(tmp_path / "text", extended, utterances=said)
    tables = model.get_input_embeddings(), model.get_output_embeddings()
    before = [table.weight.detach().clone() for table in tables]
    learnt = ExampleStream(said, extended, EQUAL, BASE.batch_bins, maximum_length=64)
    config = change(method=method, lora=LoraConfig(rank=2, alpha=2))
    trained = adapt(model, learnt, config, tmp_path / "log").model
    words = extended.text_size
    for then, table in zip(before, (trained.get_input_embeddings(), trained.get_output_embeddings()), strict=True):
        assert torch.equal(table.weight[:words], then[:words]) == (method == "lora")
        assert not torch.equal(table.weight[words:], then[words:])
