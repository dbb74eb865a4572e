from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import Adam

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.optimizers import make_optimizer
from sparq.adaptation.ortho_adam import OrthoAdam, turn, turn_back
from sparq.adaptation.start import new_model
from sparq.adaptation.training import adapt
from sparq.attention import install
from sparq.config import AdaptationConfig
from sparq.language.tasks import TASKS
from sparq.quantization.hadamard import random_signs

some = settings(max_examples=40, deadline=None)
shapes = st.lists(st.integers(1, 12), min_size=0, max_size=3)
RATE, DECAY = 0.05, 0.1
NOTHING_TURNED = 9  # a dimension behind the last
ORTHO = AdaptationConfig(
    method="full", optimizer="orthoadam", learning_rate=3e-3, beta2=0.98, weight_decay=0.1, steps=6, warmup_steps=0,
    batch_bins=200, schedule="constant", log_every=1,
)  # fmt: skip


def signs_of(shape, first, number, seed=0):
    """The transform of the parameter with a number among all, by its definition."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    return [random_signs(size, generator) for size in shape[first:]]


def dense(shape, signs, first):
    """Q as a matrix over all elements."""
    eye = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.stack([turn(row.reshape(shape), signs, first).flatten() for row in eye]).T


def parameters(shapes, seed=0):
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]


def take_steps(optimizer, loss, count):
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


@some
@given(shapes, st.integers(0, 3), st.integers(0, 2**31))
def test_the_transform_is_orthogonal_and_undone(shape, first, seed):
    first = min(first, len(shape))
    signs = signs_of(shape, first, 0, seed)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    turned = turn(x, signs, first)
    torch.testing.assert_close(turn_back(turned, signs, first), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned.norm(), x.norm(), rtol=1e-12, atol=1e-12)
    q = dense(shape, signs, first)
    torch.testing.assert_close(q @ q.T, torch.eye(len(q), dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(q.T @ turned.flatten(), x.flatten(), rtol=0, atol=1e-12)


def test_what_stands_before_the_first_dimension_is_left_apart():
    x = torch.zeros(5, 8, dtype=torch.float64)
    x[2, 3] = 1
    rows, _ = turn(x, signs_of((5, 8), 1, 0), 1).nonzero(as_tuple=True)
    assert rows.tolist() == [2] * 8
    # Without it the one value is spread over all.
    assert bool((turn(x, signs_of((5, 8), 0, 0)).abs() < 1).all())


@pytest.mark.parametrize("fused", [False, True])
def test_equals_adam_where_the_transform_is_the_identity(fused):
    shapes = [(6, 4), (5,), (2, 3, 4), ()]
    mine, theirs = parameters(shapes), parameters(shapes)
    wanted = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    common = {"lr": RATE, "betas": (0.8, 0.95), "weight_decay": DECAY, "fused": fused}
    ortho = OrthoAdam([{"params": mine, "first_dimension": NOTHING_TURNED}], **common)
    adam = Adam(theirs, **common)
    for optimizer, own in ((ortho, mine), (adam, theirs)):
        take_steps(optimizer, lambda own=own: sum((p - w).pow(4).sum() for p, w in zip(own, wanted, strict=True)), 12)
    for value, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)


def test_is_adam_in_the_turned_basis():
    """Equivariance: OrthoAdam on f from x goes where Adam on f ∘ Qᵀ from Q·x goes, turned back."""
    shapes, firsts = [(6, 4), (5,), (7, 3)], [0, 0, 1]
    mine = parameters(shapes)
    qs = [dense(s, signs_of(s, first, n), first) for n, (s, first) in enumerate(zip(shapes, firsts, strict=True))]
    theirs = [nn.Parameter(q @ p.detach().flatten()) for q, p in zip(qs, mine, strict=True)]
    mixing = [torch.randn(p.numel(), p.numel(), dtype=torch.float64) for p in mine]

    def loss(flat):
        return sum((m @ x).pow(4).sum() / 100 + x.sum() for m, x in zip(mixing, flat, strict=True))

    common = {"lr": RATE, "betas": (0.8, 0.95), "weight_decay": DECAY}
    groups = [{"params": mine[:2]}, {"params": mine[2:], "first_dimension": 1}]
    found = take_steps(OrthoAdam(groups, **common), lambda: loss([p.flatten() for p in mine]), 15)
    expected = take_steps(Adam(theirs, **common), lambda: loss([q.T @ y for q, y in zip(qs, theirs, strict=True)]), 15)
    assert found == pytest.approx(expected, rel=1e-9)
    for q, p, y in zip(qs, mine, theirs, strict=True):
        torch.testing.assert_close(p.flatten(), q.T @ y, rtol=1e-9, atol=1e-10)
    # And this is not where Adam itself goes.
    plain = parameters(shapes)
    take_steps(Adam(plain, **common), lambda: loss([p.flatten() for p in plain]), 15)
    assert all(float((p - other).detach().abs().max()) > 1e-2 for p, other in zip(mine, plain, strict=True))


def test_finds_the_minimum_of_a_quadratic():
    (x,) = parameters([(8, 6)])
    wanted = torch.randn(8, 6, dtype=torch.float64)
    mixing = torch.eye(48, dtype=torch.float64) + 0.03 * torch.randn(48, 48, dtype=torch.float64)

    def loss():
        return (mixing @ (x - wanted).flatten()).square().sum()

    optimizer = OrthoAdam([x], lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 400)
    for _ in range(400):
        take_steps(optimizer, loss, 1)
        schedule.step()
    torch.testing.assert_close(x.detach(), wanted, rtol=0, atol=1e-3)


def test_the_gradient_stays_and_what_has_none_does_too():
    x, y = parameters([(4, 4), (3,)])
    before = y.detach().clone()
    optimizer = OrthoAdam([x, y])
    (x * 3).sum().backward()
    optimizer.step()
    assert torch.equal(x.grad, torch.full((4, 4), 3.0, dtype=torch.float64))
    assert torch.equal(y, before)
    assert y not in optimizer.state


def test_going_on_from_a_state_is_going_on_with_its_transform():
    shapes = [(6, 4), (5,)]
    mine = parameters(shapes)

    def loss(own):
        return sum((p - 1).pow(4).sum() for p in own)

    optimizer = OrthoAdam(mine, lr=RATE, seed=7)
    take_steps(optimizer, lambda: loss(mine), 4)
    state = copy.deepcopy(optimizer.state_dict())
    twins = [nn.Parameter(p.detach().clone()) for p in mine]
    again = OrthoAdam(twins, lr=1.0, seed=8)
    again.load_state_dict(state)
    others = [nn.Parameter(p.detach().clone()) for p in mine]
    wrong = OrthoAdam(others, lr=RATE, seed=8)
    wrong.state = {q: copy.deepcopy(optimizer.state[p]) for p, q in zip(mine, others, strict=True)}
    take_steps(optimizer, lambda: loss(mine), 4)
    take_steps(again, lambda: loss(twins), 4)
    take_steps(wrong, lambda: loss(others), 4)
    assert all(torch.equal(p, q) for p, q in zip(mine, twins, strict=True))
    assert not any(torch.allclose(p, q, atol=1e-4) for p, q in zip(mine, others, strict=True))


def test_a_group_added_later_has_the_seed():
    x, y = parameters([(4, 4), (3,)])
    optimizer = OrthoAdam([x], seed=5)
    optimizer.add_param_group({"params": [y]})
    assert [(g["seed"], g["first_dimension"]) for g in optimizer.param_groups] == [(5, 0), (5, 0)]


def test_tokens_are_not_mixed(vocabulary, tiny_shape):
    model = install(new_model(dataclasses.replace(tiny_shape, architecture="opt", dropout=0.0), vocabulary), "learned")
    optimizer = make_optimizer(model, ORTHO)
    assert isinstance(optimizer, OrthoAdam)
    found = {p: group["first_dimension"] for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(model.parameters())
    assert optimizer.defaults["seed"] == ORTHO.seed
    by_row = {name for name, p in model.named_parameters() if found[p] == 1}
    assert by_row == {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight", "lm_head.weight"}
    # A row without a gradient does not move.
    ids = torch.tensor([[5, 6, 7, 5]])
    before = model.get_input_embeddings().weight.detach().clone()
    model(input_ids=ids, labels=ids).loss.backward()
    make_optimizer(model, dataclasses.replace(ORTHO, weight_decay=0.0)).step()
    moved = (model.get_input_embeddings().weight != before).any(1).nonzero().flatten()
    assert moved.tolist() == [5, 6, 7]


def test_the_trainer_goes_on_from_its_checkpoint(vocabulary, tiny_shape, make_sentences, tmp_path):
    shape = dataclasses.replace(tiny_shape, dropout=0.0)
    stream = ExampleStream(make_sentences(30, shortest=1, longest=3), vocabulary, dict.fromkeys(TASKS, 1.0), 200)
    whole = adapt(new_model(shape, vocabulary), stream, ORTHO, tmp_path / "whole")
    half = dataclasses.replace(ORTHO, steps=3, save_every=3)
    adapt(new_model(shape, vocabulary), stream, half, tmp_path / "parts")
    resumed = adapt(new_model(shape, vocabulary), stream, ORTHO, tmp_path / "parts")
    assert [entry["loss"] for entry in resumed.history] == pytest.approx(
        [entry["loss"] for entry in whole.history], rel=1e-6
    )
    for value, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
