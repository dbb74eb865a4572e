"""Saved with a model or an adapter, and put back on loading."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from sparq.attention import AttentionSettings, install, installed, load_pretrained, restore
from sparq.attention.install import attention_modules
from sparq.deployment import DeploymentConfig, quantize_in_torch
from sparq.errors import UserError
from sparq.quantization import QuantizationConfig, quantize

TOKENS = torch.randint(4, 29, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def train_one_step(model: Any) -> None:
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimiser.step()
    model.eval()


@pytest.mark.parametrize("sink", ["none", "zero", "max", "mean", "learned"])
def test_saved_and_loaded(tiny: Any, kind: str, sink: str, tmp_path: Path) -> None:
    model = install(tiny(kind), sink, detach=sink == "max")
    if sink == "learned":
        train_one_step(model)
    model.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())["sparq_attention"]
    assert record == {"sink": sink, "implementation": "fused", "detach": sink == "max"}
    loaded = load_pretrained(tmp_path, dtype=torch.float64)
    assert installed(loaded) == AttentionSettings(**record)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-10)


def test_from_pretrained_alone_is_not_enough_and_restore_is(tiny: Any, tmp_path: Path) -> None:
    model = install(tiny("llama"), "learned")
    train_one_step(model)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file(), "the sinks should be spread over several files"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert installed(loaded) is None
    assert (logits(loaded) - logits(model)).abs().max() > 1e-3
    torch.testing.assert_close(logits(restore(loaded)), logits(model), rtol=0, atol=1e-10)


def test_loading_does_not_report_learned_sinks(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(tiny("opt"), "learned").save_pretrained(tmp_path)
    kind = type(tiny("opt"))
    before = kind._keys_to_ignore_on_load_unexpected
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        load_pretrained(tmp_path)
        assert "UNEXPECTED" not in caplog.text
        AutoModelForCausalLM.from_pretrained(tmp_path)
        assert "UNEXPECTED" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)
    assert kind._keys_to_ignore_on_load_unexpected == before


def test_models_without_a_record_load_as_ever(tiny: Any, tmp_path: Path) -> None:
    model = tiny("opt")
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, dtype=torch.float64)
    assert installed(loaded) is None
    assert restore(loaded) is loaded
    torch.testing.assert_close(logits(loaded), logits(model))


def adapter(model: Any, **more: Any) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **more))


@pytest.mark.parametrize("sink", ["zero", "max", "mean", "learned"])
def test_adapter_over_an_ordinary_base(tiny: Any, sink: str, tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    model = adapter(install(base, sink), modules_to_save=["sink_logit"] if sink == "learned" else None)
    train_one_step(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_pretrained(tmp_path / "adapter", dtype=torch.float64)
    assert installed(loaded) == AttentionSettings(sink)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-10)
    if sink == "learned":
        sinks = [module.sink_logit.weight for _, module in attention_modules(loaded.get_base_model())]
        assert all(weight.abs().min() > 0 for weight in sinks)
    assert not any(p.requires_grad for p in loaded.parameters())
    trainable = load_pretrained(tmp_path / "adapter", trainable=True, dtype=torch.float64)
    assert any(p.requires_grad for p in trainable.parameters())


def test_adapter_over_a_base_with_learned_sinks(tiny: Any, tmp_path: Path) -> None:
    base = install(tiny("opt"), "learned")
    train_one_step(base)
    base.save_pretrained(tmp_path / "base")
    model = adapter(load_pretrained(tmp_path / "base", dtype=torch.float64))
    train_one_step(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_pretrained(tmp_path / "adapter", dtype=torch.float64)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-10)


def test_merged_adapter_is_saved_with_its_attention(tiny: Any, tmp_path: Path) -> None:
    model = adapter(install(tiny("llama"), "learned"), modules_to_save=["sink_logit"])
    train_one_step(model)
    before = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_pretrained(tmp_path, dtype=torch.float64)), before, rtol=0, atol=1e-10)


def test_installed_around_a_base_inside_peft(tiny: Any, tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    model = adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64))
    assert install(model, "max") is model
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    for folder in ("adapter", "adapter/second"):
        assert installed(load_pretrained(tmp_path / folder)) == AttentionSettings("max")


def test_vanilla_adapters_carry_no_record(tiny: Any, tmp_path: Path) -> None:
    adapter(tiny("llama")).save_pretrained(tmp_path)
    assert not (tmp_path / "sparq_attention.json").exists()


def test_damaged_records(tiny: Any, tmp_path: Path) -> None:
    install(tiny("opt"), "max").save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    good = config.read_text()
    config.write_text(good.replace('"sink": "max"', '"sink": "maximum"'))
    with pytest.raises(UserError, match="base: sparq_attention: sink: unknown value 'maximum'"):
        load_pretrained(tmp_path / "base")
    config.write_text(good.replace('"sink": "max"', '"sink": "learned"'))
    with pytest.raises(UserError, match=r"sink_logit\.weight is not among the weights"):
        load_pretrained(tmp_path / "base")
    config.write_text(good)
    adapter(load_pretrained(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "sparq_attention.json").write_text('{"sink": ')
    with pytest.raises(UserError, match=r"sparq_attention\.json: damaged record") as error:
        load_pretrained(tmp_path / "adapter")
    assert "\n" not in str(error.value)
    (tmp_path / "adapter" / "sparq_attention.json").write_text('{"sinks": "max"}')
    with pytest.raises(UserError, match=r"sparq_attention\.json: .*'sinks'"):
        load_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("how", ["simulated", "deployed"])
def test_quantised_models_come_back_where_nothing_else_was_imported(tiny: Any, how: str, tmp_path: Path) -> None:
    model = install(tiny("llama").float(), "max")
    if how == "simulated":
        quantize(model, QuantizationConfig("rotation", 4, 4))
    else:
        pytest.importorskip("torchao")
        quantize_in_torch(model, DeploymentConfig(8, engine="torch"))
    model.save_pretrained(tmp_path / "model")
    wanted = logits(model)
    torch.save(TOKENS, tmp_path / "tokens.pt")
    program = """
import sys, torch
from sparq.attention import load_pretrained
with torch.no_grad():
    found = load_pretrained(sys.argv[1] + "/model")(input_ids=torch.load(sys.argv[1] + "/tokens.pt")).logits
torch.save(found, sys.argv[1] + "/logits.pt")
"""
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), wanted, rtol=1e-4, atol=1e-5)


def test_what_tells_where_on_the_hub_is_passed_on(tiny: Any, tmp_path: Path) -> None:
    """A folder inside the one that is named stands for a revision: both are given to everything that reads."""
    model = install(tiny("llama"), "learned")
    train_one_step(model)
    model.save_pretrained(tmp_path / "inside")
    loaded = load_pretrained(tmp_path, subfolder="inside", dtype=torch.float64)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-10)
