"""Low bits inside a torch model, where torchao is installed; what must be refused, everywhere."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sparq
from sparq.deployment.in_memory import quantize_in_memory
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, quantize

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def relative_error(model, wanted, ids):
    with torch.no_grad():
        found = model(ids.to(model.device)).logits.float().cpu()
    return float((found - wanted).norm() / wanted.norm())


@needs_torchao
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_eight_bits_stay_close(kind, make_tiny, make_padded):
    model, (ids, _) = make_tiny(kind, "max"), make_padded()
    with torch.no_grad():
        wanted = model(ids).logits
    assert quantize_in_memory(model, 8) is model
    assert 1e-4 < relative_error(model, wanted, ids) < 0.05
    with pytest.raises(UserError, match="is deployed"):
        quantize(model, QuantizationConfig("round"))


@needs_torchao
def test_it_is_not_saved(tmp_path):
    lm = sparq.load()
    quantize_in_memory(lm.model, 8)
    with pytest.raises(UserError, match="in memory"):
        lm.save(tmp_path / "mine")
    assert not list(tmp_path.iterdir())


@needs_torchao
@needs_cuda
def test_four_bits_on_a_gpu():
    """Of 320 inputs no groups of 128 can be made: that linear stays as it was."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=256, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4)
    ).eval()
    ids = torch.randint(64, (2, 20))
    with torch.no_grad():
        wanted = model(ids).logits
    model = model.to("cuda", torch.bfloat16)
    left = model.model.layers[0].mlp.down_proj.weight
    quantize_in_memory(model, 4)
    assert model.model.layers[0].mlp.down_proj.weight is left
    assert 0.01 < relative_error(model, wanted, ids) < 0.3


def test_what_is_refused(make_tiny, monkeypatch):
    with pytest.raises(UserError, match=r"deployment\.bits: 3"):
        quantize_in_memory(make_tiny("llama"), 3)
    with pytest.raises(UserError, match="4 needs a CUDA device and bfloat16, not cpu"):
        quantize_in_memory(make_tiny("llama"), 4)
    with pytest.raises(UserError, match="is quantised already"):
        quantize_in_memory(quantize(make_tiny("llama"), QuantizationConfig("round")), 8)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"need torchao; run: pip install 'sparq\[deploy\]'"):
        quantize_in_memory(make_tiny("llama"), 8)
