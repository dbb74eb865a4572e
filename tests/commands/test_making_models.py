"""From one SpeechLM to another: ``sparq adapt``, ``quantize`` and ``export``."""

from __future__ import annotations

import json

import pytest
import torch

from sparq.artifacts import read_manifest
from sparq.language.speech_lm import SpeechLM

OTHERWISE = "was made with other settings or inputs; overwrite it, or choose another name"


def test_adapt_with_settings_behind_the_options(sparq, lm, corpus, tmp_path):
    settings = ["method=lora", "lora.rank=2", "steps=2", "batch_bins=600", "warmup_steps=1", "log_every=1"]
    code, out, _ = sparq("adapt", corpus, "-o", "more", "--model", lm, "--sink", "zero", *settings)
    assert (code, out) == (0, "more/speechlm: 2 steps\n")
    assert read_manifest(tmp_path / "more" / "speechlm", "speechlm").settings["attention"]["sink"] == "zero"
    assert sparq("adapt", corpus, "-o", "once", "--model", lm, "batch_bins=600")[1] == "once/speechlm: 1 steps\n"
    code, _, err = sparq("adapt", corpus, "-o", "once", "--model", lm, "batch_bins=500")
    assert (code, err.splitlines()[-1]) == (2, f"sparq: once: {OTHERWISE}")
    code, out, _ = sparq("adapt", corpus, "-o", "once", "--overwrite", "--model", lm, "batch_bins=600", "steps=2")
    assert (code, out) == (0, "once/speechlm: 2 steps\n")
    code, out, err = sparq("adapt", corpus, "--json", *settings, "-o", "more", "--model", lm, "--sink", "zero")
    assert (code, err) == (0, "")
    assert [entry["step"] for entry in json.loads(out)] == [1, 2]


def test_adapt_on_a_packed_base(sparq, lm, corpus):
    pytest.importorskip("bitsandbytes")
    settings = ["method=qlora", "qlora.bits=8", "lora.rank=2", "lora.initialisation=loftq", "steps=1", "batch_bins=600"]
    code, out, _ = sparq("adapt", corpus, "-o", "more", "--model", lm, *settings)
    assert code == 0
    done, saved = out.splitlines()
    assert done == "more/speechlm: 1 steps"
    assert saved.startswith("frozen weights: ")


def test_quantize(sparq, tiny_run, lm, corpus, tmp_path):
    asked = ("quantize", corpus, "-o", "small", "--model", lm, "--calibration", 4)
    code, out, err = sparq(*asked)
    assert (code, out, err) == (0, "small: smoothquant W8A8, simulated\n", "")
    made = read_manifest(tmp_path / "small", "speechlm")
    assert made.fingerprint == read_manifest(tiny_run.folder / "max-W8A8" / "speechlm", "speechlm").fingerprint
    stamp = (tmp_path / "small" / "config.json").stat().st_mtime_ns
    assert sparq(*asked)[0] == 0  # it is there already
    assert (tmp_path / "small" / "config.json").stat().st_mtime_ns == stamp
    assert sparq(*asked, "--alpha", 0.4) == (2, "", f"sparq: small: {OTHERWISE}\n")
    assert (tmp_path / "small" / "config.json").stat().st_mtime_ns == stamp
    assert sparq(*asked, "--alpha", 0.4, "--overwrite")[0] == 0
    assert read_manifest(tmp_path / "small", "speechlm").fingerprint != made.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_quantize_by_learning(sparq, lm, corpus, tmp_path):
    widths = ("--weight-bits", 4, "--activation-bits", 4)
    asked = ("--method", "affinequant", *widths, "--calibration", 4, "--epochs", 1, "--group-size", 8)
    code, out, err = sparq("quantize", corpus, "-o", "small", "--model", lm, *asked)
    assert (code, out) == (0, "small: affinequant W4A4, simulated\n")
    assert "block 1 of 1: error" in err
    settings = read_manifest(tmp_path / "small", "speechlm").settings["quantization"]
    assert (settings["method"], settings["epochs"], settings["group_size"]) == ("affinequant", 1, 8)
    assert not (tmp_path / "small" / "learnt").exists()


def test_quantize_by_rotation_and_gptq(sparq, lm, corpus, tmp_path):
    asked = ("quantize", corpus, "-o", "turned", "--model", lm, "--calibration", 4, "--weight-bits", 4, "--seed", 1)
    code, out, err = sparq(*asked, "--method", "rotation", "--rounding", "gptq")
    assert (code, out, err) == (0, "turned: rotation-gptq W4A8, simulated\n", "")
    made = read_manifest(tmp_path / "turned", "speechlm").settings["quantization"]
    assert (made["method"], made["rounding"], made["seed"]) == ("rotation", "gptq", 1)


def test_export(sparq, lm, tmp_path):
    code, out, err = sparq("export", lm, "-o", "whole")
    assert (code, err) == (0, "")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    assert out == f"whole: {size / 1e6:.1f} MB\n"
    assert (tmp_path / "whole" / "codebook").is_dir()
    assert sparq("export", lm, "-o", "lean", "--half", "--lean")[0] == 0
    assert not (tmp_path / "lean" / "codebook").exists()  # the one that ships
    wholes, halves = (SpeechLM.load(tmp_path / name).model.state_dict() for name in ("whole", "lean"))
    assert all(torch.equal(halves[name], value.half().float()) for name, value in wholes.items())
    (tmp_path / "whole" / "README.md").write_text("the card")
    assert sparq("export", "whole", "-o", "whole", "--half")[0] == 0
    assert (tmp_path / "whole" / "README.md").read_text() == "the card"  # also when it is written over itself
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    code, _, err = sparq("export", lm, "-o", "mine")
    assert (code, err) == (2, "sparq: mine: is in the way (it is no SpeechLM)\n")


def test_export_of_a_mean(sparq, lm, tmp_path):
    other = SpeechLM.load(lm)
    for weight in other.model.parameters():
        weight.data.mul_(3.0)
    other.save(tmp_path / "other")
    assert sparq("export", lm, "-o", "mean", "--average", "other")[0] == 0
    mean, first = SpeechLM.load(tmp_path / "mean").model, SpeechLM.load(lm).model
    for (name, weight), expected in zip(mean.named_parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(weight, 2 * expected, msg=name)
