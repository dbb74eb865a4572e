from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch.optim import Adam, AdamW

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.lora import add_lora
from sparq.adaptation.muon import Muon
from sparq.adaptation.optimizers import Together, make_optimizer
from sparq.adaptation.start import new_model
from sparq.adaptation.training import adapt
from sparq.attention import install
from sparq.config import AdaptationConfig, LoraConfig
from sparq.language.tasks import TASKS

MUON = AdaptationConfig(
    method="full", optimizer="muon", learning_rate=3e-3, beta2=0.98, weight_decay=0.1, steps=6, warmup_steps=0,
    batch_bins=200, schedule="constant", log_every=1,
)  # fmt: skip
OUTSIDE = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def model(vocabulary, tiny_shape):
    return install(new_model(dataclasses.replace(tiny_shape, dropout=0.0), vocabulary), "learned", gate="per_token")


@pytest.fixture
def stream(vocabulary, make_sentences):
    return ExampleStream(make_sentences(30, shortest=1, longest=3), vocabulary, dict.fromkeys(TASKS, 1.0), 200)


def take_steps(model, optimizers, stream, count, first=0):
    for _, batch in zip(range(count), stream.starting_at(first), strict=False):
        model(**batch).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def assert_same_weights(model, other):
    for (name, value), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value, expected), name


def test_hidden_matrices_go_by_muon_and_all_else_by_adamw(model, stream):
    twin = copy.deepcopy(model)
    named = dict(twin.named_parameters())
    hidden = [value for name, value in named.items() if value.ndim == 2 and name not in OUTSIDE]
    others = [value for name, value in named.items() if value.ndim != 2 or name in OUTSIDE]
    assert any("sink_logit" in name for name in named)
    assert not any("head_gate" in name for name, value in named.items() if value.ndim == 2), "heads are not one matrix"
    apart = [
        Muon(hidden, lr=3e-3, weight_decay=0.1),
        AdamW(others, lr=3e-3, weight_decay=0.1, betas=(0.9, 0.98), fused=True),
    ]
    before = copy.deepcopy(model)
    take_steps(model, [make_optimizer(model, MUON)], stream, 3)
    take_steps(twin, apart, stream, 3)
    assert_same_weights(model, twin)
    assert not any(torch.equal(new, old) for new, old in zip(model.parameters(), before.parameters(), strict=True))


def test_a_schedule_reaches_every_parameter_once(model):
    optimizer = make_optimizer(model, MUON)
    found = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(found) == sorted(map(id, model.parameters()))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    schedule.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [1.5e-3, 1.5e-3]


def test_going_on_from_a_state_is_going_on(model, stream):
    optimizer = make_optimizer(model, MUON)
    take_steps(model, [optimizer], stream, 2)
    twin, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    again = make_optimizer(twin, MUON)
    again.load_state_dict(state)
    take_steps(model, [optimizer], stream, 2, first=2)
    take_steps(twin, [again], stream, 2, first=2)
    assert_same_weights(model, twin)
    # The groups are the parts' own after loading too, or a schedule would change copies.
    assert [id(group) for group in again.param_groups] == [id(g) for part in again.parts for g in part.param_groups]


def test_the_trainer_goes_on_with_muon_from_its_checkpoint(vocabulary, tiny_shape, stream, tmp_path):
    shape = dataclasses.replace(tiny_shape, dropout=0.0)
    whole = adapt(new_model(shape, vocabulary), stream, MUON, tmp_path / "whole")
    half = dataclasses.replace(MUON, steps=3, save_every=3)
    adapt(new_model(shape, vocabulary), stream, half, tmp_path / "parts")
    resumed = adapt(new_model(shape, vocabulary), stream, MUON, tmp_path / "parts")
    assert [entry["loss"] for entry in resumed.history] == pytest.approx(
        [entry["loss"] for entry in whole.history], rel=1e-6
    )
    for value, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_what_is_frozen_stays_frozen(model, stream):
    adapted = add_lora(model, LoraConfig(rank=2), 0)
    optimizer = make_optimizer(adapted, MUON)
    assert isinstance(optimizer, Together)
    kept = {n: p.detach().clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    assert kept
    take_steps(adapted, [optimizer], stream, 2)
    after = dict(adapted.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in kept.items())
    muon, adamw = optimizer.parts
    assert all(parameter.ndim == 2 for group in muon.param_groups for parameter in group["params"])
    assert sum(len(group["params"]) for part in (muon, adamw) for group in part.param_groups) == len(
        [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    )


@pytest.mark.parametrize(
    ("optimizer", "method"),
    [("adam", "full"), ("orthoadam", "full"), ("adam", "lora"), ("adamw", "lora"), ("muon", "lora")],
)
def test_words_that_nothing_is_learnt_of_do_not_decay(model, optimizer, method):
    """Adam makes a whole step of the smallest gradient, of which the decay is a part; under adapters words stay."""
    config = dataclasses.replace(MUON, optimizer=optimizer, method=method, weight_decay=1e-3)
    before = copy.deepcopy(model)
    made = make_optimizer(model, config)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        made.step()
    for (name, now), then in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then) == (name in OUTSIDE or not then.any()), name


def test_adam_is_torchs(model, stream):
    twin = copy.deepcopy(model)
    named = dict(twin.named_parameters())
    rest = [value for name, value in named.items() if name not in OUTSIDE]
    groups = [{"params": [named[name] for name in OUTSIDE], "weight_decay": 0.0}, {"params": rest}]
    theirs = Adam(groups, lr=3e-3, weight_decay=0.1, betas=(0.9, 0.98), fused=True)
    take_steps(model, [make_optimizer(model, dataclasses.replace(MUON, optimizer="adam"))], stream, 4)
    take_steps(twin, [theirs], stream, 4)
    assert_same_weights(model, twin)
