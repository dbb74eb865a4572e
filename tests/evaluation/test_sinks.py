"""Attention sinks and massive activations, against transformers' own probabilities and plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_models import MODELS, batches, flows, model_of, sequences

from sparq.attention import install, installed
from sparq.errors import UserError
from sparq.evaluation.sinks import first_token_attention, massive_activations, sinks
from sparq.quantization import QuantizationConfig, quantize
from sparq.quantization.blocks import architecture


@pytest.fixture(params=list(MODELS))
def kind(request):
    return request.param


def by_the_definitions(model):
    """One unpadded sequence at a time, from what transformers' eager attention returns and the blocks give."""
    model = model.eval()
    model.set_attn_implementation("eager")
    names = [f"{architecture(model).layers}.{layer}" for layer in range(3)]
    attention, ratios, largest = [], [], [(0,)] * 3
    for ids in sequences():
        with torch.no_grad():
            given = model(ids[None], output_attentions=True).attentions
        attention.append([[head[1:, 0].mean() for head in layer[0].numpy()] for layer in given])
        sizes = [np.abs(x) for _, x in flows(model, names, ids).values()]
        medians = [np.sort(x.ravel())[(x.size - 1) // 2] for x in sizes]
        ratios.append([x.max() / median for x, median in zip(sizes, medians, strict=True)])
        for i, x in enumerate(sizes):
            position, channel = np.unravel_index(x.argmax(), x.shape)
            largest[i] = max(largest[i], (x.max(), ratios[-1][i], position, int(ids[position]), channel))
    return np.mean(attention, 0), np.mean(ratios, 0), largest


@pytest.mark.parametrize(("size", "side"), [(1, "right"), (4, "right"), (3, "left")])
def test_is_the_definition_whatever_the_padding(kind, size, side):
    model = model_of(kind)
    report = sinks(model, batches(size, side))
    assert model.training
    attention, ratios, largest = by_the_definitions(model)
    np.testing.assert_allclose(report.by_head, attention, rtol=1e-5)
    np.testing.assert_allclose(report.ratios, ratios, rtol=1e-5)
    assert report.first_token_attention == pytest.approx(attention.mean(), rel=1e-5)
    assert report.sink_heads == pytest.approx((attention > 0.3).mean())
    assert report.massive_activation_ratio == pytest.approx(ratios.max(), rel=1e-5)
    np.testing.assert_allclose(report.unspent, 0, atol=1e-6)
    assert report.massive == [0, 0, 0]
    assert report.sequences == 4
    for layer, (found, wanted) in enumerate(zip(report.largest, largest, strict=True)):
        assert found.layer == layer
        assert (found.position, found.token, found.channel) == wanted[2:]
        assert (found.magnitude, found.ratio) == pytest.approx(wanted[:2], rel=1e-5)


def test_worked_out_by_hand():
    """Two tokens of padding in front; the first real token receives 1 (its own), 0.5 and 0.2."""
    p = torch.zeros(2, 1, 5, 5)
    p[0, 0, 2, 2], p[0, 0, 3, 2:4], p[0, 0, 4, 2:] = 1, torch.tensor([0.5, 0.25]), torch.tensor([0.2, 0.3, 0.1])
    p[0, 0, :2] = 7  # what padding attends to is nobody's business
    p[1, 0] = torch.eye(5)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    to_first, unspent = first_token_attention(p, mask)
    torch.testing.assert_close(to_first, torch.tensor([[0.35], [0.0]]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(unspent, torch.tensor([[(0.25 + 0.4) / 2], [0.0]]).double(), rtol=1e-6, atol=1e-7)


def test_massive_is_above_a_hundred_and_a_thousand_medians():
    states = torch.full((3, 4), 0.1)
    states[1, 2], states[2, 0], states[0, 3] = -300, 101, 99
    found, massive = massive_activations(states, torch.tensor([7, 8, 9]), 5)
    assert (found.layer, found.position, found.token, found.channel) == (5, 1, 8, 2)
    assert (found.magnitude, found.ratio, massive) == pytest.approx((300, 3000, 2))
    _, massive = massive_activations(states + 0.2, torch.tensor([7, 8, 9]), 5)  # the median is 0.3 now
    assert massive == 0
    assert massive_activations(torch.zeros(2, 3), torch.tensor([1, 2]), 0)[0].ratio == 0


def test_a_planted_sink_and_a_planted_massive_activation_show():
    model = model_of("opt-pre-norm").eval()
    decoder = model.model.decoder
    with torch.no_grad():
        decoder.embed_positions.weight[2, 5] += 4000  # OPT's first position
    report = sinks(model, batches(4, "left"))
    assert [(one.position, one.channel) for one in report.largest] == [(0, 5)] * 3
    assert min(one.magnitude for one in report.largest) > 3500
    assert min(report.massive) >= 1
    first = decoder.layers[0].self_attn
    with torch.no_grad():  # every query is alike, and the first key lies in its direction
        for linear in (first.q_proj, first.k_proj):
            linear.weight.zero_()
        first.q_proj.bias.fill_(1.0)
        first.k_proj.weight[:, 5] = 1.0
    report = sinks(model, batches(4, "left"))
    assert min(report.by_head[0]) > 0.9
    assert report.sink_heads >= 1 / 3


@pytest.mark.parametrize("choice", [{"sink": "max"}, {"sink": "clipped", "gamma": -0.1}, {"gate": "per_token"}])
def test_installed_attention_is_measured_and_left_as_it_was(kind, choice):
    model = install(model_of(kind), **choice)
    before, settings = {k: v.clone() for k, v in model.state_dict().items()}, installed(model)
    report = sinks(model, batches(2))
    assert installed(model) == settings
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules() if not hasattr(m, "head_gate"))
    # The max sink keeps between 1/2 and n/(n + 1) of a row; both others can only lose some, too.
    assert np.min(report.unspent) > (0 if choice.get("sink") == "clipped" else 1 / 13)
    assert np.max(report.by_head) < 1


def test_quantised_models_are_measured_too():
    model = quantize(install(model_of("llama"), "zero"), QuantizationConfig("round", 4, 4))
    assert sinks(model, batches(2)).sequences == 4
    assert installed(model).sink == "zero"


def test_sets_that_cannot_be_measured():
    model = model_of("llama")
    with pytest.raises(UserError, match="not one sequence"):
        sinks(model, [])
    with pytest.raises(UserError, match="has one token"):
        sinks(model, [{"input_ids": torch.tensor([[3]])}])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.config._attn_implementation == "sdpa"
