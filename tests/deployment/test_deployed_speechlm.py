"""A deployed SpeechLM is a SpeechLM: the same folder, calls and commands."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import sparq
from sparq.cli import main
from sparq.deployment import DeployedModel
from sparq.errors import UserError
from sparq.language.likelihood import log_likelihoods
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS, example

SAID = "he had never been there before"
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")


@pytest.fixture(scope="module")
def lm():
    return sparq.load()


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed") / "float"
    sparq.deploy(lm, folder, bits=32)
    return folder


def test_it_hears_speaks_and_writes_the_same(lm, folder):
    deployed = sparq.load(folder)
    assert isinstance(deployed.model, DeployedModel)
    assert deployed.prior_name == "smollm2-135m"
    (wave, rate), (same, _) = lm.speak(SAID), deployed.speak(SAID)
    np.testing.assert_array_equal(wave, same)  # one other unit would be another waveform
    assert rate == 16000
    assert deployed.transcribe([wave, wave[: rate // 2]]) == lm.transcribe([wave, wave[: rate // 2]])
    options = sparq.GenerationOptions(method="sample", seed=3, max_pieces=20)
    assert deployed.continue_text("the train", options) == lm.continue_text("the train", options)
    examples = [example(TASKS["textlm"], lm.vocabulary, text=text) for text in (SAID, "the train leaves at nine")]
    wanted, found = log_likelihoods(lm.model, examples), log_likelihoods(deployed.model, examples)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_four_bits_are_a_fifth_and_still_understand(lm, tmp_path):
    deployed = sparq.deploy(lm, tmp_path / "small")
    size = sum((tmp_path / "small" / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert size <= 0.2 * 4 * sum(parameter.numel() for parameter in lm.model.parameters())
    texts = [SAID, "it was the best of times it was the worst of times"]
    assert deployed.transcribe([wave for wave, _ in deployed.speak(texts)]) == texts


def test_what_knows_likely_transcripts_stays(lm, tmp_path, monkeypatch):
    class Suspicious:
        def log_likelihoods(self, texts):
            return [-1000.0 * ("late" in text) for text in texts]

    wave, _ = lm.speak("it is late")
    assert "late" in lm.transcribe(wave)
    monkeypatch.setattr(lm, "prior", Suspicious())
    assert "late" not in lm.transcribe(wave)
    assert sparq.deploy(lm, tmp_path / "same", bits=32).transcribe(wave) == lm.transcribe(wave)


def test_a_folder_is_whole_and_passed_on(folder, tmp_path, capsys):
    told = json.loads((folder / "sparq.json").read_text())
    assert told["settings"]["deployment"] == {"bits": 32, "activations": "float32", "engine": "onnx"}
    assert told["settings"]["attention"]["sink"] == "max"
    assert not list(folder.glob("*.safetensors"))
    assert main(["export", str(folder), "-o", str(tmp_path / "copy"), "--lean"]) == 0
    capsys.readouterr()
    assert not (tmp_path / "copy" / "vocoder").exists()
    assert json.loads((tmp_path / "copy" / "sparq.json").read_text())["settings"] == told["settings"]
    assert main(["continue", "the train", "--beam", "2", "--model", str(tmp_path / "copy")]) == 0
    assert capsys.readouterr().out.startswith("the train")


def test_what_is_damaged_or_exchanged_is_named(folder, tmp_path, capsys):
    copy = tmp_path / "copy"
    sparq.load(folder).save(copy, complete=False)
    data = copy / "model.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-4] + b"abcd")
    with pytest.raises(UserError, match="its weights"):
        sparq.load(copy)
    data.write_bytes(whole)
    (copy / "model.onnx").unlink()
    with pytest.raises(UserError, match="its weights"):
        sparq.load(copy)
    with pytest.raises(UserError, match="damaged or missing deployed model"):
        DeployedModel(copy)
    assert main(["export", str(folder), "-o", str(tmp_path / "half"), "--half"]) == 2
    assert "is deployed (W32A32); its weights stay as they are" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()
    with pytest.raises(UserError, match="device: cuda"):
        SpeechLM.load(folder, "cuda")


def test_what_needs_the_model_itself_says_so(folder, tmp_path, capsys):
    commands = (
        ["deploy", str(folder), "-o", str(tmp_path / "again")],
        ["paper", "theory", "--model", str(folder)],
    )
    for command in commands:
        assert main(command) == 2, command
        assert "is deployed" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_the_command_tells_how_much_is_left(tmp_path, capsys):
    assert main(["deploy", "--bits", "8", "--lean", "-o", str(tmp_path / "small")]) == 0
    out = capsys.readouterr().out
    assert "W8A8, the model 5.0 MB, 29 % of float32's" in out
    assert main(["deploy", "--bits", "3", "-o", str(tmp_path / "none")]) == 2
    assert "deployment.bits: 3" in capsys.readouterr().err
    assert (
        "\n**Deployed with W8A8. The numbers below are those of the" in (tmp_path / "small" / "README.md").read_text()
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert main(["deploy", "-o", str(tmp_path / "mine")]) == 2
    assert "is in the way" in capsys.readouterr().err


def test_a_failed_deployment_leaves_the_older_one(lm, folder, tmp_path):
    target = tmp_path / "kept"
    sparq.load(folder).save(target, complete=False)
    before = (target / "sparq.json").read_bytes()
    odd = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=lm.vocabulary.size,
            hidden_size=24,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    with pytest.raises(UserError, match="has 24 inputs"):
        sparq.deploy(SpeechLM(odd, lm.vocabulary, lm.codebook), target)
    assert (target / "sparq.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.fixture(scope="module")
def torch_folder(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployed") / "torch"
    sparq.deploy(lm, folder, bits=4, engine="torch", complete=False)
    return folder


@needs_torchao
def test_low_bits_in_torch_hear_speak_and_write(lm, torch_folder):
    size, whole = (torch_folder / "model.safetensors").stat().st_size, sum(one.numel() for one in lm.model.parameters())
    assert size <= 0.16 * 4 * whole
    deployed = sparq.load(torch_folder)
    wave, rate = deployed.speak(SAID)
    assert rate == 16000
    assert deployed.transcribe([wave, wave[: rate // 2]])[0] == SAID
    options = sparq.GenerationOptions(method="sample", seed=3, max_pieces=20)
    written = deployed.continue_text("the train", options)
    assert written.startswith("the train")
    assert written == sparq.load(torch_folder).continue_text("the train", options)
    examples = [example(TASKS["textlm"], lm.vocabulary, text=text) for text in (SAID, "the train leaves at nine")]
    wanted, found = log_likelihoods(lm.model, examples), log_likelihoods(deployed.model, examples)
    np.testing.assert_allclose(found, wanted, rtol=0.1)
    assert np.abs(np.subtract(found, wanted)).min() > 1e-3


@needs_torchao
def test_a_torch_folder_is_whole_and_passed_on(torch_folder, tmp_path, capsys, monkeypatch):
    told = json.loads((torch_folder / "sparq.json").read_text())["settings"]
    assert told["deployment"] == {"bits": 4, "activations": "bfloat16", "engine": "torch"}
    assert told["quantization"] is None
    assert told["attention"]["sink"] == "max"
    assert main(["export", str(torch_folder), "-o", str(tmp_path / "copy"), "--lean"]) == 0
    files = [folder / "model.safetensors" for folder in (torch_folder, tmp_path / "copy")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert main(["continue", "the train", "--beam", "2", "--model", str(tmp_path / "copy")]) == 0
    capsys.readouterr()
    for command, message in (
        (
            ["export", str(torch_folder), "-o", str(tmp_path / "half"), "--half"],
            "is deployed (W4A16); its weights stay",
        ),
        (["deploy", str(torch_folder), "-o", str(tmp_path / "again")], "is deployed"),
        (["deploy", str(torch_folder), "-o", str(tmp_path / "again"), "--engine", "torch"], "is deployed"),
        (["deploy", "-o", str(tmp_path / "wide"), "--engine", "torch", "--bits", "32"], "deployment.bits: 32"),
    ):
        assert main(command) == 2, command
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    with pytest.raises(UserError, match="device: mps"):
        sparq.load(torch_folder, device="mps")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="need torchao; run: pip install"):
        sparq.load(torch_folder)


@needs_torchao
def test_the_command_deploys_in_torch(tmp_path, capsys):
    assert main(["deploy", "--engine", "torch", "--bits", "8", "--lean", "-o", str(tmp_path / "small")]) == 0
    assert "W8A8, the model 4.4 MB, 25 % of float32's" in capsys.readouterr().out
