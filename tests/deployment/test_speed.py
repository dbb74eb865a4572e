"""What ``sparq bench deploy`` measures, on a tiny model; how fast that is depends on the machine and is not judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sparq
from sparq.cli import main
from sparq.deployment import speed
from sparq.deployment.speed import LOW_BIT, ONNX, Load, compare, forms_here
from sparq.errors import SparqError, UserError

QUICK = Load(prompt=8, decoded=2, repeats=1, threads=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    return sparq.install_attention(LlamaForCausalLM(config), "max")


def test_a_form_is_measured_in_a_process_of_its_own(model, tmp_path):
    said = []
    (four,) = compare(model, tmp_path, QUICK, ["onnx 4-bit"], said.append)
    assert said == ["onnx 4-bit"]
    assert 0 < four.memory_before < four.peak_memory < 2e9
    assert min(four.prefill, four.decode, four.prefill_cpu, four.decode_cpu) > 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_whole_command(model, tmp_path, capsys, monkeypatch):
    """Each form in this process, because starting seven takes half a minute."""

    class Here:
        returncode = 0

        def __init__(self, command, **_):
            form, folder, load = command[3:]
            self.stdout = json.dumps(speed.measure(form, Path(folder), Load(**json.loads(load))))

    monkeypatch.setattr(speed.subprocess, "run", Here)
    model.save_pretrained(tmp_path / "model")
    command = ["bench", "deploy", str(tmp_path / "model"), "--prompt", "4", "--tokens", "2", "--repeats", "1"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["load"] == {"prompt": 4, "decoded": 2, "repeats": 1, "threads": 0, "device": "cpu"}
    assert [row["form"] for row in told["forms"]] == forms_here("cpu")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    float32, bfloat16, *low = told["forms"]
    graphs = [row for row in low if row["form"] in ONNX]
    for row in low:
        if row["form"] in LOW_BIT:
            assert (
                row["bytes_ratio"] <= {"torch int8": 0.4, "torch 4-bit": 0.3}[row["form"]]
            )  # headers and norms included
    assert 4 * parameters <= float32["bytes_on_disk"] <= 4 * parameters + 8192
    assert bfloat16["bytes_on_disk"] <= 2 * parameters + 8192
    assert [row["bytes_on_disk"] for row in graphs] == sorted((row["bytes_on_disk"] for row in graphs), reverse=True)
    for row in told["forms"]:
        assert row["bytes_ratio"] == round(row["bytes_on_disk"] / float32["bytes_on_disk"], 3)
        assert row["decode_ratio"] > 0
    assert main(command) == 0
    assert "onnx 4-bit" in capsys.readouterr().out


def test_what_cannot_be_measured_is_named(model, tmp_path, capsys, monkeypatch):
    with pytest.raises(UserError, match="40 tokens of prompt and answer, but the model has only 32 positions"):
        compare(model, tmp_path, Load(prompt=38, decoded=2))
    with pytest.raises(UserError, match=r"bench\.repeats: 0"):
        Load(repeats=0)
    assert main(["bench", "deploy", "--prompt", "5000"]) == 2
    assert "only 1024 positions" in capsys.readouterr().err
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(SparqError, match="torch float32 broke"):
        compare(model, tmp_path, QUICK, ["torch float32"])


def test_only_what_can_run_is_measured(monkeypatch):
    monkeypatch.setattr(speed, "multiplies_four_bits", lambda _: False)
    assert not set(forms_here("cuda")) & set(ONNX)
    assert "torch 4-bit" not in forms_here("cuda")
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda _: None)
    assert forms_here("cuda") == ["torch float32", "torch bfloat16"]
    with pytest.raises(UserError, match="device: mps"):
        Load(device="mps")
