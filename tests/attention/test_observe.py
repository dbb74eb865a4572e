"""What is seen of the attention of a running model: against transformers' own probabilities, and leaving no trace."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sparq.attention import install, installed
from sparq.attention.gate import INPUT
from sparq.attention.install import attention_modules
from sparq.attention.observe import observed
from sparq.errors import UserError

CHOICES = {
    "none": {"sink": "none"},
    "zero": {"sink": "zero"},
    "max": {"sink": "max"},
    "mean": {"sink": "mean"},
    "learned": {"sink": "learned"},
    "clipped": {"sink": "clipped", "gamma": -0.05, "zeta": 1.02},
    "gated": {"sink": "zero", "gate": "per_token", "gate_pretrained": False},
}


def batch():
    ids = torch.randint(4, 29, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, :4] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}


def look(model):
    seen = []
    with torch.no_grad(), observed(model, seen.append):
        logits = model(**batch()).logits
    return seen, logits


def real(states):
    """Zero what padding asks for, [batch, heads, length, ...] or [batch, length, ...]; nobody says what that is."""
    mask = batch()["attention_mask"].bool()[..., None]
    return states.masked_fill(~(mask[:, None] if states.dim() == 4 else mask), 0)


def test_ordinary_softmax_is_that_of_transformers(tiny, kind):
    """Padded on either side, against one unpadded sequence at a time."""
    model = tiny(kind)
    seen, logits = look(model)
    model.set_attn_implementation("eager")
    assert [one.layer for one in seen] == [0, 1]
    for row, mask in enumerate(batch()["attention_mask"].bool()):
        with torch.no_grad():
            given = model(batch()["input_ids"][row : row + 1, mask], output_attentions=True)
        for one, wanted in zip(seen, given.attentions, strict=True):
            mine = one.probabilities[row][:, mask][..., mask]
            torch.testing.assert_close(mine, wanted[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(one.weighted[row], one.probabilities[row] @ one.values[row])
        torch.testing.assert_close(logits[row, mask], given.logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_computed_with_is_what_is_seen(tiny, kind, choice):
    """The model gives, while it is looked at, what it gives otherwise, and is afterwards what it was."""
    model = install(tiny(kind), **CHOICES[choice])
    if choice == "learned":
        for _, module in attention_modules(model):
            torch.nn.init.normal_(module.sink_logit.weight)
    with torch.no_grad():
        before = model(**batch()).logits
    settings, config = installed(model), copy.deepcopy(model.config)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen, logits = look(model)
    torch.testing.assert_close(real(logits), real(before))
    assert installed(model) == settings
    assert model.config.to_dict() == config.to_dict()
    assert model.config._attn_implementation == config._attn_implementation == settings.name
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, before)
    assert len(seen) == 2


@pytest.mark.parametrize("choice", ["zero", "max", "clipped"])
def test_first_layer_against_the_ordinary_probabilities(tiny, kind, choice):
    """The first layer reads the same whatever the attention, so its probabilities follow from the ordinary ones."""
    ordinary = look(tiny(kind))[0][0].probabilities
    seen = look(install(tiny(kind), **CHOICES[choice]))[0][0].probabilities
    if choice == "max":
        wanted = ordinary / (1 + ordinary.amax(-1, keepdim=True))
    elif choice == "clipped":
        wanted = (1.07 * ordinary - 0.05).clamp(0, 1)
    else:
        ratio = seen.sum(-1, keepdim=True)
        assert bool((real(ratio) < 1).all())
        wanted = ordinary * ratio
    torch.testing.assert_close(real(seen), real(wanted))


def test_gates_multiply_what_heads_give(tiny, kind):
    model = install(tiny(kind), **CHOICES["gated"])
    inputs = []
    _, module = next(attention_modules(model))
    handle = module.register_forward_pre_hook(lambda _, __, given: inputs.append(given[INPUT]), with_kwargs=True)
    seen, _ = look(model)
    handle.remove()
    with torch.no_grad():
        gates = module.head_gate(inputs[0]).mT[..., None]
    torch.testing.assert_close(seen[0].weighted, seen[0].probabilities @ seen[0].values * gates)
    assert not torch.allclose(gates, gates[:, :1])


def test_a_model_that_fails_is_left_as_it_was(tiny):
    model = install(tiny("llama"), "max")

    def broken(_):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"), observed(model, broken):
        model(**batch())
    assert installed(model).sink == "max"
    assert model(**batch()).logits.isfinite().any()


def test_other_architectures_are_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="'Linear' cannot take"), observed(model, print):
        pass


def test_threads_look_one_after_another_and_see_their_own_model_alone(tiny):
    """A third one that only runs a model is not looked at."""
    models = [install(tiny("llama"), sink) for sink in ("max", "zero")]
    wanted = [look(model) for model in models]

    def looking(index):
        return [look(models[index]) for _ in range(5)]

    def running(_):
        with torch.no_grad():
            return [models[0](**batch()).logits for _ in range(10)]

    with ThreadPoolExecutor(3) as threads:
        ran = threads.submit(running, 0)
        found = list(threads.map(looking, (0, 1)))
    for (seen, logits), looks in zip(wanted, found, strict=True):
        for its, given in looks:
            assert [one.layer for one in its] == [one.layer for one in seen]
            torch.testing.assert_close(its[1].probabilities, seen[1].probabilities)
            torch.testing.assert_close(given, logits)
    for given in ran.result():
        torch.testing.assert_close(given, wanted[0][1], rtol=1e-4, atol=1e-4)
    assert [installed(model).sink for model in models] == ["max", "zero"]
