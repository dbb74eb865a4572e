"""QLoRA: the packed base against plain definitions, and training on it; most of it needs bitsandbytes."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys

import pytest
import torch
from test_initialisers import KINDS, make
from test_lora import ids
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.initialisers import loftq
from sparq.adaptation.lora import adapter_share, add_lora, merge_lora
from sparq.adaptation.packed_linear import PackedLinear, storage_grid
from sparq.adaptation.qlora import BaseMemory, add_qlora, unpack_base
from sparq.adaptation.start import new_model
from sparq.adaptation.training import MEMORY, adapt
from sparq.attention import install
from sparq.config import INITIALISATIONS, AdaptationConfig, LoraConfig, QloraConfig
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, quantize
from sparq.quantization.blocks import blocks

try:
    from bitsandbytes import functional as bitsandbytes
except ImportError:
    bitsandbytes = None
needs_bitsandbytes = pytest.mark.skipif(bitsandbytes is None, reason="bitsandbytes is not installed")

# The widths that the kernel of bitsandbytes 0.50 for AVX-512 gets wrong are among them: 16, 48 and 96.
SHAPES = [(5, 40), (48, 16), (16, 48), (24, 96), (32, 64), (3, 256), (10, 130)]


def linear(rows, columns, seed=0, *, transposed=False, bias=True):
    torch.manual_seed(seed)
    made = Conv1D(rows, columns) if transposed else nn.Linear(columns, rows, bias=bias)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def matrix(made):
    return made.weight.detach().T if isinstance(made, Conv1D) else made.weight.detach()


# ---- the packed linear


@needs_bitsandbytes
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_the_grid_of_bitsandbytes_bit_for_bit(shape):
    weight = matrix(linear(*shape))
    packed, state = bitsandbytes.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
    # Unpacked by hand: two codes in a byte, the first one in the upper half.
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()[: weight.numel()].long()
    scales = state.absmax.repeat_interleave(64)[: weight.numel()]
    expected = (state.code[codes] * scales).view(shape)
    assert torch.equal(storage_grid(4)(weight), expected)
    assert torch.equal(PackedLinear(linear(*shape), 4).matrix(torch.float32), expected)


@needs_bitsandbytes
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_the_grid_of_bitsandbytes(shape):
    weight = matrix(linear(*shape))
    numbers, scale, _ = bitsandbytes.int8_vectorwise_quant(weight.half())
    expected = numbers * scale.unsqueeze(1) / 127
    torch.testing.assert_close(storage_grid(8)(weight), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(PackedLinear(linear(*shape), 8).matrix(torch.float32), expected, rtol=1e-6, atol=0)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_what_loftq_gives_is_stored_unchanged(bits):
    weight = matrix(linear(32, 96))
    base = loftq(weight, 4, storage_grid(bits), 3).base
    stored = linear(32, 96)
    stored.weight.data.copy_(base)
    torch.testing.assert_close(PackedLinear(stored, bits).matrix(torch.float32), base, rtol=1e-6, atol=0)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_and_gradients_are_those_of_the_unpacked_weight(bits, transposed):
    packed = PackedLinear(linear(24, 96, transposed=transposed), bits)
    plain = packed.unpack()
    assert type(plain) is (Conv1D if transposed else nn.Linear)
    x = torch.randn(2, 5, 96, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    torch.testing.assert_close(packed(x), plain(y))
    packed(x).square().sum().backward()
    plain(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    with torch.autocast("cpu", torch.bfloat16):
        half = packed(x)
        half.float().sum().backward()
    assert half.dtype == torch.bfloat16
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(half.float(), plain(y), rtol=0.05, atol=0.2)


@needs_bitsandbytes
def test_the_full_weight_is_not_kept_for_the_backward_pass():
    packed = PackedLinear(linear(64, 64, bias=False), 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        packed(torch.randn(3, 64, requires_grad=True))
    assert not any(tensor.numel() >= 64 * 64 for tensor in kept)


# ---- in models


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_all_linears_of_the_blocks_are_packed_and_merged_back(kind, bits):
    model = make(kind).float()
    names = [name for block in blocks(model) for name in block.linears]
    before = sum(model.get_submodule(name).weight.numel() for name in names)
    plain_share = adapter_share(add_lora(make(kind).float(), LoraConfig(rank=2)))
    adapted, memory = add_qlora(model, LoraConfig(rank=2, alpha=3, targets=("o",)), QloraConfig(bits=bits))
    adapted.eval()
    assert memory.before == 4 * before
    assert memory.after < memory.before / {4: 7, 8: 2.9}[bits]  # of so small linears the scales are a good part
    assert sum(isinstance(module, PackedLinear) for module in adapted.modules()) == len(names)
    assert adapter_share(adapted).model == plain_share.model
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
        expected = adapted(ids()).logits
        merged = merge_lora(unpack_base(adapted)).eval()
        torch.testing.assert_close(merged(ids()).logits, expected, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == make(kind).state_dict().keys()
    assert all(value.dtype == torch.float32 for value in merged.parameters())
    # A merged model is an ordinary one: it can be quantised after training, which is how the paper does it (G.3).
    quantize(copy.deepcopy(merged), QuantizationConfig(method="round", weight_bits=4, activation_bits=16))


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_loftq_brings_the_packed_model_nearer_to_the_full_one(bits):
    distances = {}
    for initialisation in ("default", "loftq"):
        model = make("llama").float()
        with torch.no_grad():
            full = model(ids()).logits
            config = LoraConfig(rank=6, alpha=3, initialisation=initialisation)
            adapted, _ = add_qlora(model, config, QloraConfig(bits=bits))
            distances[initialisation] = float((adapted.eval()(ids()).logits - full).norm())
    assert distances["loftq"] < 0.6 * distances["default"]


# ---- in training


BASE = AdaptationConfig(
    method="qlora", lora=LoraConfig(rank=4, alpha=4), steps=20, batch_bins=200, learning_rate=1e-2,
    schedule="constant", warmup_steps=0, log_every=1, save_every=8,
)  # fmt: skip


@pytest.fixture
def stream(vocabulary, make_sentences):
    return ExampleStream(make_sentences(30, shortest=1, longest=3), vocabulary, {"asr": 1, "tts": 1}, BASE.batch_bins)


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "initialisation"), zip((4, 8, 4, 8), INITIALISATIONS, strict=True))
def test_training_learns(vocabulary, tiny_shape, stream, tmp_path, bits, initialisation):
    config = dataclasses.replace(
        BASE,
        lora=dataclasses.replace(BASE.lora, initialisation=initialisation),
        qlora=QloraConfig(bits=bits),
        precision="bfloat16",
    )
    model = install(new_model(tiny_shape, vocabulary), "learned")
    # The live measure evaluates between steps, which must leave the packed weights as they are.
    training = adapt(model, stream, config, tmp_path, measure=lambda model: {"norm": float(_forward(model).norm())})
    losses = [entry["loss"] for entry in training.history if "loss" in entry]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert isinstance(training.memory, BaseMemory)
    assert json.loads((tmp_path / MEMORY).read_text()) == dataclasses.asdict(training.memory)


def _forward(model):
    model.eval()
    with torch.no_grad():
        return model(ids()).logits


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [4, 8])
def test_training_goes_on_from_its_checkpoint(vocabulary, tiny_shape, stream, tmp_path, bits):
    lora = LoraConfig(rank=4, alpha=8, dropout=0.1, initialisation="loftq")
    config = dataclasses.replace(BASE, lora=lora, qlora=QloraConfig(bits=bits))

    def train(folder, steps):
        model = install(new_model(tiny_shape, vocabulary), "max")
        return adapt(model, stream, dataclasses.replace(config, steps=steps), tmp_path / folder)

    whole = train("whole", 12)
    train("parts", 8)
    resumed = train("parts", 12)
    assert resumed.history[-1]["step"] == 12
    for value, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


# ---- what is refused


def test_without_bitsandbytes_it_says_what_to_install(vocabulary, tiny_shape, stream, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    model = new_model(tiny_shape, vocabulary)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"adaptation\.method: qlora needs the package bitsandbytes"):
        adapt(model, stream, BASE, tmp_path)
    assert not any(tmp_path.iterdir())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_widths_are_refused():
    with pytest.raises(UserError, match=r"bits: 5 \(expected 4 or 8\)"):
        QloraConfig(bits=5)
