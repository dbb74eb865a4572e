"""OmniQuant and AffineQuant: an equivalence before rounding, better than plain rounding after it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sparq.attention import install
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, quantize
from sparq.quantization.affinequant import AffineQuant, gradual_mask
from sparq.quantization.blocks import blocks
from sparq.quantization.clipping import LearnableClipping
from sparq.quantization.omniquant import OmniQuant
from sparq.quantization.quantizer import Quantizer
from sparq.quantization.reconstruction import _inside, _store, block_state
from sparq.quantization.simulate import SimulatedLinear, replace_linears
from sparq.quantization.transforms import InputRange, Matrix

# The RMS norms and rotary tables of transformers compute in float32 whatever the model's type.
TOLERANCE = dict.fromkeys(("llama-grouped", "mistral", "qwen2", "qwen3"), 1e-5)
METHODS = {"omniquant": OmniQuant, "affinequant": AffineQuant}


def logits(model, batch, *, train=False):
    torch.manual_seed(7)  # the same dropout in every model
    model.train(train)
    with torch.no_grad():
        return model(**batch).logits


def without_attention_dropout(model):
    """Dropped probabilities do not sum to 1, and a shift of the values would not come out of training as it went in."""
    for module in model.modules():
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def ranges_of(block, state):
    """Ranges with a middle of their own in every channel, of what each linear of a block reads."""
    return {
        name: InputRange(*(torch.randn(state[f"{name}.weight"].shape[1], dtype=torch.float64) + at for at in (0, -3, 3)))
        for name in block.linears
    }


def learnt_parts(model, config):
    """Every block with what a method learns of it, everything at random; shifts that do nothing else would show."""
    for block in blocks(model):
        state = block_state(model.get_submodule(block.name), block)
        learnt = METHODS[config.method](block, state, ranges_of(block, state), config)
        with torch.no_grad():
            for parameter in learnt.transformation.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        yield block, state, learnt


@pytest.mark.parametrize("method", list(METHODS))
def test_random_transformations_leave_the_function_alone(kind, method, make_tiny, make_batches):
    model = without_attention_dropout(make_tiny(kind))
    before = copy.deepcopy(model)
    # Shifts are asked for, as for narrow activations, but nothing is rounded.
    config = QuantizationConfig(method, 16, 8, stability_factor=0.3)
    parts = list(learnt_parts(model, config))
    replace_linears(model, config)
    shifted = 0
    with torch.no_grad():
        for block, state, learnt in parts:
            layer = model.get_submodule(block.name)
            _store(layer, _inside(layer, block, learnt(state)))
            shifted += sum(name.endswith("shift") for name, _ in learnt.named_parameters())
    moved = [m for m in model.modules() if isinstance(m, SimulatedLinear)]
    for module in moved:
        module.activation = None
    assert shifted == (0 if kind in TOLERANCE else 2 * 3)
    for train in (False, True):
        batch = make_batches(1, seed=9)[0]
        real = batch["attention_mask"].bool()
        wanted, given = logits(before, batch, train=train)[real], logits(model, batch, train=train)[real]
        torch.testing.assert_close(given, wanted, rtol=0, atol=TOLERANCE.get(kind, 1e-9))
    changed = [
        name
        for block in blocks(before)
        for name in block.linears
        if not torch.allclose(before.get_submodule(name).weight, model.get_submodule(name).weight, rtol=1e-3)
    ]
    # All but the linear that leaves the MLP.
    assert changed == [name for block in blocks(before) for name in block.linears[:-1]]
