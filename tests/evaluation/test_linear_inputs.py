"""Outliers of what the linears read: by the definitions, and through what each method makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from measured_models import MODELS, batches, flows, model_of, sequences

from sparq.errors import UserError
from sparq.evaluation.linear_inputs import INPUTS, crest_factors, linear_inputs, reading_linears
from sparq.quantization import QuantizationConfig, quantize
from sparq.quantization.blocks import blocks


@pytest.fixture(params=list(MODELS))
def kind(request):
    return request.param


@pytest.mark.parametrize("side", ["right", "left"])
def test_is_the_definition_whatever_the_padding(kind, side):
    model = model_of(kind)
    report = linear_inputs(model, batches(3, side))
    names = reading_linears(model)
    assert len(names) == len(INPUTS) * 3
    found = {name: [] for name in names}
    model.eval()
    for ids in sequences():
        for name, (x, _) in flows(model, names, ids).items():
            kurtosis = ((x - x.mean()) ** 4).mean() / x.std() ** 4
            crest = (np.abs(x).max(-1) / np.sqrt((x**2).mean(-1))).mean()
            found[name].append((np.abs(x).max(), kurtosis, crest))
    wanted = np.array([np.mean(found[name], 0) for name in names]).T
    for given, values in zip((report.infinity_norms, report.kurtoses, report.crest_factors), wanted, strict=True):
        assert list(given) == names
        np.testing.assert_allclose(list(given.values()), values, rtol=1e-4)
    assert report.maximum_infinity_norm == pytest.approx(wanted[0].max(), rel=1e-4)
    assert report.average_kurtosis == pytest.approx(wanted[1].mean(), rel=1e-4)
    assert report.average_crest_factor == pytest.approx(wanted[2].mean(), rel=1e-4)
    assert (report.sequences, model.training) == (4, False)


def test_crest_factors_of_known_tokens():
    x = torch.tensor([[[1.0, -1, 1, 1], [0, 0, 3, 0], [9, 9, 9, 1]], [[0, 0, 0, 0], [2, 2, 2, 2], [7, 1, 1, 1]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()
    for given in (x, x.flatten(0, 1)):
        assert crest_factors(given, mask).tolist() == pytest.approx([1.5, 1.0])


def spiked(kind):
    """A model one channel of whose norms is thirty times the others, with readers that make up for it."""
    model = model_of(kind).eval()
    with torch.no_grad():
        for block in blocks(model):
            for siblings in block.smoothed:
                for parameter in siblings.norm.parameters():
                    parameter[3] *= 30
    return model


@pytest.mark.parametrize("method", ["smoothquant", "rotation"])
@pytest.mark.parametrize("kind", ["opt-pre-norm", "llama", "gpt2"])
def test_methods_flatten_what_is_read(kind, method):
    """With grids so fine that only the transformation acts."""
    before = linear_inputs(spiked(kind), batches(2))
    model = quantize(spiked(kind), QuantizationConfig(method, 16, 16, calibration_sequences=4), batches(2))
    after = linear_inputs(model, batches(2))
    plain = linear_inputs(quantize(spiked(kind), QuantizationConfig("round", 16, 16)), batches(2))
    assert plain == before
    assert list(after.crest_factors) == list(before.crest_factors)
    reads_norm = [name for block in blocks(spiked(kind)) for name in (s.linears[0] for s in block.smoothed)]
    for name in reads_norm:
        assert after.crest_factors[name] < 0.9 * before.crest_factors[name]
        assert after.kurtoses[name] < before.kurtoses[name]
    assert after.average_crest_factor < before.average_crest_factor


def test_an_empty_set_is_refused_and_the_hooks_are_gone():
    model = model_of("llama")
    with pytest.raises(UserError, match="not one sequence"):
        linear_inputs(model, [])
    assert not any(m._forward_pre_hooks for m in model.modules())
