from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sparq.artifacts import ArtifactMismatchError
from sparq.attention import install
from sparq.config import AttentionConfig
from sparq.errors import UserError
from sparq.language.averaging import average
from sparq.language.speech_lm import SpeechLM
from sparq.quantization import QuantizationConfig, quantize
from sparq.speech.units import Codebook


def book(seed=0):
    return Codebook(np.random.default_rng(seed).normal(size=(12, 2)).astype(np.float32), "encoder", "name", (0,))


@pytest.fixture
def make(make_tiny, joint_vocabulary):
    def made(seed, sink="max", codebook=None, **more):
        model = make_tiny("llama", joint_vocabulary, dtype=torch.float32, positions=64, **more)
        install(model, **AttentionConfig().arguments(sink))
        generator = torch.Generator().manual_seed(seed)
        for weight in model.parameters():
            weight.data.add_(torch.randn(weight.shape, generator=generator))
        return SpeechLM(model, joint_vocabulary, codebook or book())

    return made


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_weight_is_the_mean(make, count):
    models = [make(seed) for seed in range(count)]
    states = [copy.deepcopy(lm.model.state_dict()) for lm in models]
    mean = average(models)
    assert mean is models[0]
    for name, weight in mean.model.state_dict().items():
        expected = sum(state[name].double() for state in states) / count
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    for lm, state in zip(models[1:], states[1:], strict=True):
        assert all(torch.equal(weight, state[name]) for name, weight in lm.model.state_dict().items())


def test_a_mean_knows_the_prior_that_any_knows(make):
    models = [make(0), make(1), make(2)]
    assert average(models).prior_name is None
    models[1].prior_name = "smollm2-135m"
    assert average(models).prior_name == "smollm2-135m"


def test_models_that_have_no_mean(make):
    with pytest.raises(UserError, match="several architectures or attentions"):
        average([make(0), make(1, sink="zero")])
    with pytest.raises(ArtifactMismatchError, match="its codebook"):
        average([make(0), make(1, codebook=book(1))])
    quantised = make(1)
    quantize(quantised.model, QuantizationConfig(method="round", weight_bits=4, activation_bits=4))
    with pytest.raises(UserError, match="quantised or deployed"):
        average([make(0), quantised])


def test_a_weight_of_two_names_is_averaged_once(make):
    models = [make(seed) for seed in range(2)]
    for lm in models:
        lm.model.lm_head.weight = lm.model.model.embed_tokens.weight
    wanted = (models[0].model.lm_head.weight + models[1].model.lm_head.weight) / 2
    torch.testing.assert_close(average(models).model.lm_head.weight, wanted)
