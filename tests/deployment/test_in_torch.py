"""A model of codes is saved and comes back bit for bit, is as small as its bits say, and is the model it stands for."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from sparq.attention import load_pretrained
from sparq.deployment import DeploymentConfig, deploy
from sparq.deployment.in_torch import quantize_in_torch, quantized_copy, require_device
from sparq.deployment.low_bit_layers import Int4Linear, Int8Embedding, Int8Linear, LowBitLinear, TiedOutput
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, quantize

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
EIGHT, FOUR = (DeploymentConfig(bits, engine="torch") for bits in (8, 4))
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=48, n_positions=64)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=48,
            max_position_embeddings=64,
        )
    ),
}


def logits(model, ids, mask):
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions.to(model.device),
        )
    return found.logits.float().cpu()[mask.bool()]


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def dequantised(plain, low):
    """The plain model with the weights that codes stand for."""
    with torch.no_grad():
        for name, layer in low.named_modules():
            if isinstance(layer, (LowBitLinear, Int8Embedding)):
                weight = plain.get_submodule(name).weight
                weight.copy_(layer.weight if layer.weight.shape == weight.shape else layer.weight.T)
    return plain


def large(seed=0):
    torch.manual_seed(seed)
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    ids = {"vocab_size": 256, "max_position_embeddings": 64, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**shape, **ids)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def saved_bytes(folder):
    return (folder / "model.safetensors").read_bytes()


@needs_torchao
@pytest.mark.parametrize("config", [EIGHT, FOUR], ids=lambda one: one.name)
def test_it_comes_back_bit_for_bit(kind, config, make_tiny, make_padded, tmp_path):
    plain = make_tiny(kind, "max")
    ids, mask = make_padded()
    wanted = logits(plain, ids, mask)
    low = quantized_copy(plain, config)
    assert torch.equal(logits(plain, ids, mask), wanted)  # the plain one stays as it was
    before = logits(low, ids, mask)
    low.save_pretrained(tmp_path / "first")
    back = load_pretrained(tmp_path / "first", dtype=torch.float32).eval()
    assert torch.equal(logits(back, ids, mask), before)
    assert type(back) is type(plain)
    assert isinstance(back.get_output_embeddings(), TiedOutput if plain.config.tie_word_embeddings else Int8Linear)
    back.save_pretrained(tmp_path / "second")
    assert saved_bytes(tmp_path / "second") == saved_bytes(tmp_path / "first")
    close = logits(dequantised(plain, low), ids, mask)
    assert 1e-4 < relative(before, close) < 0.05
    assert relative(before, close) < relative(before, wanted) or config is EIGHT


@needs_torchao
@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name, make_padded, tmp_path):
    torch.manual_seed(0)
    plain = OTHERS[name]().eval()
    ids, mask = make_padded()
    wanted, low = logits(plain, ids, mask), quantized_copy(plain, EIGHT)
    before = logits(low, ids, mask)
    assert relative(before, wanted) < 0.05
    low.save_pretrained(tmp_path)
    assert torch.equal(logits(load_pretrained(tmp_path, dtype=torch.float32).eval(), ids, mask), before)


@needs_torchao
@pytest.mark.parametrize("attention", [{"sink": "learned"}, {"sink": "max", "gate": "per_token"}, {"sink": "l1"}])
def test_every_attention_comes_back(attention, make_tiny, make_padded, tmp_path):
    low = quantize_in_torch(make_tiny("llama", **attention), FOUR)
    ids, mask = make_padded()
    with torch.no_grad():
        for name, parameter in low.named_parameters():
            if "sink_logit" in name or "head_gate" in name:
                parameter.uniform_(-1, 1)
    before = logits(low, ids, mask)
    low.save_pretrained(tmp_path)
    assert torch.equal(logits(load_pretrained(tmp_path, dtype=torch.float32).eval(), ids, mask), before)


@needs_torchao
@pytest.mark.parametrize(("config", "share"), [(EIGHT, 0.26), (FOUR, 0.145)], ids=["8", "4"])
def test_bytes_and_tokens_are_those_of_the_width(config, share, tmp_path):
    plain = large()
    ids = torch.randint(1, 256, (8, 48))
    mask = torch.ones_like(ids)
    low = quantized_copy(plain, config)
    low.save_pretrained(tmp_path)
    file, whole = tmp_path / "model.safetensors", 4 * sum(parameter.numel() for parameter in plain.parameters())
    assert 0.9 * share < file.stat().st_size / whole <= share
    with safe_open(file, "pt") as weights:
        kinds = {weights.get_tensor(name).dtype for name in weights.keys() if name.endswith("codes")}  # noqa: SIM118
    assert kinds == ({torch.int8} if config is EIGHT else {torch.int8, torch.uint8})
    assert not list(tmp_path.glob("*.bin"))
    found = logits(low, ids, mask)
    wanted = logits(dequantised(plain, low), ids, mask)
    first, second = wanted.topk(2, dim=-1).values.unbind(-1)
    decided = first - second > 0.5 * wanted.std()
    assert decided.sum() > 50
    assert torch.equal(found.argmax(-1)[decided], wanted.argmax(-1)[decided])


@needs_torchao
def test_a_linear_that_four_bits_do_not_fit_takes_eight(make_padded, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
    low = quantize_in_torch(LlamaForCausalLM(LlamaConfig(**shape, vocab_size=48)).eval(), FOUR)
    (layer,) = low.model.layers
    kinds = [type(part) for part in (layer.mlp.gate_proj, layer.mlp.down_proj, layer.self_attn.q_proj, low.lm_head)]
    assert kinds == [Int8Linear, Int8Linear, Int4Linear, Int8Linear]
    ids, mask = make_padded()
    before = logits(low, ids, mask)
    low.save_pretrained(tmp_path)
    assert torch.equal(logits(load_pretrained(tmp_path, dtype=torch.float32).eval(), ids, mask), before)


@needs_torchao
@needs_cuda
@pytest.mark.parametrize("config", [EIGHT, FOUR], ids=lambda one: one.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_computes_the_same_and_gives_the_same_folder_back(config, dtype, tmp_path):
    """One token at a time and many at once, which torchao multiplies in different ways."""
    plain = large()
    low = quantized_copy(plain, config)
    low.save_pretrained(tmp_path / "first")
    ids = torch.randint(1, 256, (2, 40))
    wanted = logits(dequantised(plain, low), ids, torch.ones_like(ids))
    back = load_pretrained(tmp_path / "first", dtype=dtype).to("cuda").eval()
    assert relative(logits(back, ids, torch.ones_like(ids)), wanted) < 0.08
    one = ids[:1, :1]
    alone = logits(dequantised(plain, low), one, torch.ones_like(one))
    assert relative(logits(back, one, torch.ones_like(one)), alone) < 0.08
    if dtype == torch.float32:
        back.save_pretrained(tmp_path / "second")
        assert saved_bytes(tmp_path / "second") == saved_bytes(tmp_path / "first")


@needs_torchao
def test_what_is_refused(make_tiny, make_padded, tmp_path):
    from peft import LoraConfig, get_peft_model

    ids, mask = make_padded()
    simulated = quantize(make_tiny("llama"), QuantizationConfig("round"), [{"input_ids": ids, "attention_mask": mask}])
    broken = make_tiny("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    low = quantize_in_torch(make_tiny("llama"), EIGHT)
    for model, message in (
        (get_peft_model(make_tiny("llama"), LoraConfig(target_modules=["q_proj"])), "carries adapters; merge them"),
        (simulated, "give it the model before it was quantised"),
        (broken, r"layers\.1\.mlp\.up_proj: holds a value that is not finite"),
        (low, "is deployed"),
    ):
        kinds = [type(module) for module in model.modules()]
        with pytest.raises(UserError, match=message):
            quantize_in_torch(model, EIGHT)
        assert [type(module) for module in model.modules()] == kinds
    for again in (
        lambda: deploy(low, DeploymentConfig(4), tmp_path),
        lambda: quantize(low, QuantizationConfig("round")),
    ):
        with pytest.raises(UserError, match=r"is deployed|is quantised already"):
            again()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"engine": "tensorrt"}, "deployment.engine: 'tensorrt' is not one of onnx, torch"),
        ({"bits": 32, "engine": "torch"}, r"deployment.bits: 32 is not one of 4, 8 \(engine torch\)"),
        (
            {"bits": 8, "activations": "float32", "engine": "torch"},
            r"activations: 'float32' is not one of int8 \(engine",
        ),
        ({"bits": 4, "activations": "bfloat16"}, r"activations: 'bfloat16' is not one of int8, float32 \(engine onnx"),
    ],
)
def test_values_out_of_range_are_named(keywords, message):
    with pytest.raises(UserError, match=message):
        DeploymentConfig(**keywords)


@pytest.mark.parametrize(("device", "message"), [("mps", "on the cpu or on cuda"), ("gpu", "'gpu' is not known")])
def test_devices_without_low_bits_are_named(device, message, monkeypatch):
    with pytest.raises(UserError, match=message):
        require_device(device, 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no such GPU"):
        require_device("cuda:1", 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="there is no such GPU"):
        require_device("cuda:1", 8)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    require_device("cuda", 8)
    with pytest.raises(UserError, match="too old for 4 bits; deploy with 8"):
        require_device("cuda", 4)


def test_torchao_is_asked_for(make_tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"need torchao; run: pip install 'sparq\[deploy\]'"):
        quantize_in_torch(make_tiny("llama"), EIGHT)


def test_each_engine_has_a_door_of_its_own(make_tiny, tmp_path):
    with pytest.raises(UserError, match=r"deployment\.engine: 'onnx'"):
        quantize_in_torch(make_tiny("llama"), DeploymentConfig(8))
    with pytest.raises(UserError, match=r"deployment\.engine: 'torch'"):
        deploy(make_tiny("llama"), FOUR, tmp_path)
