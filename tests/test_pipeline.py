"""A recipe from end to end: what it makes, what it skips, what it builds again, and how it comes back from kill -9."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import sparq
from sparq import pipeline
from sparq.adaptation.teacher import TextTeacher
from sparq.artifacts import Manifest
from sparq.attention import AttentionSettings, installed
from sparq.config import QuantizationRow
from sparq.errors import UserError
from sparq.making import Watcher
from sparq.paper.summary import finish, method_title
from sparq.pipeline import Run
from sparq.recipe import load_recipe
from sparq.speech.audio import load_audio
from sparq.stages import read_stage

MODELS = {"none", "none-W8A8", "max", "max-W8A8"}
SCORES = {"scores-none-W16A16", "scores-none-W8A8", "scores-max-W16A16", "scores-max-W8A8"}
STAGES = {"corpus", "vocabulary", "vocoder"} | MODELS | SCORES
SHORT = sparq.GenerationOptions(max_pieces=10)


@pytest.fixture
def copied(tiny_run, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    return tmp_path / "run"


def stages(recipe) -> dict[str, list[str]]:
    """Run every stage of a recipe; what happened to each, by what happened."""
    events: dict[str, list[str]] = {}
    run = Run(recipe, Watcher(stage=lambda event: events.setdefault(event.state, []).append(event.name)))
    for sink, row in run.models():
        run.scored(sink, row)
    return events


def test_the_table_has_every_model(tiny_run):
    assert [(row["sink"], row["bits"], row["method"]) for row in tiny_run.rows] == [
        ("none", "W16A16", None), ("none", "W8A8", "SmoothQuant"), ("max", "W16A16", None), ("max", "W8A8", "SmoothQuant"),
    ]  # fmt: skip
    for row in tiny_run.rows:
        assert row["text_perplexity"] > 1
        assert row["speech_perplexity"] > 1
        assert row["maximum_infinity_norm"] > 0
        assert all(math.isfinite(row[name]) for name in ("asr_wer", "tts_wer", "average_kurtosis"))
        assert (row["average_drop"] is None) == (row["bits"] == "W16A16")
    full, quantised = tiny_run.rows[:2]
    names = ("text_perplexity", "speech_perplexity", "asr_wer", "tts_wer")
    ratios = [quantised[name] / full[name] - 1 for name in names]
    assert quantised["average_drop"] == pytest.approx(100 * sum(ratios) / 4)
    assert quantised["text_perplexity"] != full["text_perplexity"]
    table = json.loads((tiny_run.folder / "table.json").read_text())
    assert table["rows"] == tiny_run.rows
    assert {"command", "commit", "machine", "date"} <= set(table["made"])


def test_the_report_and_what_lies_beside_it(tiny_run):
    page = tiny_run.report.read_text()
    assert page.count("<audio") >= 5  # the recording, and one sentence by two variants at two widths
    assert "Come in." in page
    assert "come back soon" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']https?:""", page)
    names = {path.name for path in tiny_run.folder.iterdir()}
    spoken = {f"spoken-1-{sink}-{bits}.wav" for sink in ("none", "max") for bits in ("W16A16", "W8A8")}
    assert names == STAGES | spoken | {"table.json", "report.html"}  # and nothing half made
    assert load_audio(tiny_run.folder / "spoken-1-max-W8A8.wav").size
    history = json.loads((tiny_run.folder / "max" / "training" / "history.json").read_text())
    assert [entry["step"] for entry in history] == [1, 2, 3]
    assert all(math.isfinite(entry["loss"]) for entry in history)
    assert "held_out/asr/accuracy" in history[1]  # measured as it trained
    assert not list(tiny_run.folder.rglob("checkpoint-*"))


def test_running_again_does_nothing(tiny_run):
    events = stages(load_recipe(tiny_run.recipe))
    assert {state: sorted(names) for state, names in events.items()} == {"skipped": sorted(STAGES)}


@pytest.mark.parametrize(
    ("setting", "rebuilt"),
    [
        ("corpus.sources.0.held_out=3", STAGES - {"vocoder"}),  # the vocoder is a ready one
        ("vocabulary.size=234", {"vocabulary"} | MODELS | SCORES),
        ("adaptation.steps=2", MODELS | SCORES),
        ("model.layers=2", MODELS | SCORES),
        ("attention.detach=true", {"max", "max-W8A8", "scores-max-W16A16", "scores-max-W8A8"}),
        ("quantization.0.alpha=0.4", {name for name in STAGES if name.endswith("W8A8")}),
        ("evaluation.sentences=2", SCORES),
        ("evaluation.spoken=[]", set()),
        ("corpus.processes=2", set()),
        ("description=another", set()),
    ],
)
def test_a_setting_changes_what_depends_on_it(tiny_run, monkeypatch, setting, rebuilt):
    changed = set()

    def compare(root, stage, on_event):
        if read_stage(root / stage.name).fingerprint != stage.fingerprint:
            changed.add(stage.name)
        return Manifest(stage.kind, {}, {}, stage.fingerprint, {})

    monkeypatch.setattr(pipeline, "run_stage", compare)
    stages(load_recipe(tiny_run.recipe, [setting]))
    assert changed == rebuilt


def test_a_ready_corpus_is_used_where_it_lies(tiny_run, tmp_path):
    ready = f"corpus.name={tiny_run.folder / 'corpus'}"
    recipe = load_recipe(tiny_run.recipe, [ready, "corpus.sources=[]", f"output={tmp_path}", "attention.sinks=[none]"])
    run = Run(recipe)
    run.check()
    run.adapted("none")
    assert {path.name for path in tmp_path.iterdir()} == {"vocabulary", "vocoder", "none"}
    twin = Run(load_recipe(tiny_run.recipe, ["attention.sinks=[none]"]))
    ours, theirs = (one.corpus.utterances("train") for one in (run, twin))
    assert [one.text for one in ours] == [one.text for one in theirs]
    with pytest.raises(UserError, match="not a SpARQ corpus folder"):
        Run(load_recipe(tiny_run.recipe, [f"corpus.name={tmp_path}"])).check()


def test_another_quantisation_is_built_beside_what_stays(tiny_run, copied):
    settings = [f"output={copied}", "attention.sinks=[max]", "quantization.0.method=round", "evaluation.sentences=1"]
    before = (copied / "max" / "stage.json").read_bytes()
    events = stages(load_recipe(tiny_run.recipe, settings))
    made = {"max-W8A8-round", "scores-max-W8A8-round"}
    assert set(events["finished"]) == made | {"scores-max-W16A16"}
    assert set(events["rebuilt"]) == {"scores-max-W16A16"}
    assert set(events["started"]) == made
    assert (copied / "max" / "stage.json").read_bytes() == before
    assert (copied / "max-W8A8").is_dir()


def test_baselines_join_the_table(tiny_run, copied):
    """Clipped softmax and gated attention, trained beside adapters."""
    settings = [
        f"output={copied}", "attention.sinks=[clipped, gated]", "attention.gating.opening=0.5",
        "adaptation.method=lora", "adaptation.lora.rank=2", "evaluation.sentences=1", "evaluation.max_pieces=4",
        "evaluation.spoken=[]", "evaluation.recordings=[]",
    ]  # fmt: skip
    rows, report = finish(load_recipe(tiny_run.recipe, settings), Watcher(), quiet=True)
    assert [(row["sink"], row["bits"]) for row in rows] == [
        (sink, bits) for sink in ("clipped", "gated") for bits in ("W16A16", "W8A8")
    ]
    page = report.read_text()
    assert all(f">{name}</span>" in page for name in ("clipped softmax", "gated attention"))
    for bits in ("", "-W8A8"):
        clipped, gated = (sparq.load(copied / f"{sink}{bits}" / "speechlm").model for sink in ("clipped", "gated"))
        assert installed(clipped) == AttentionSettings("clipped", "plain", gamma=-12 / 512)
        assert installed(gated) == AttentionSettings("none", gate="per_token", gate_opening=0.5)
        bias = gated.model.layers[0].self_attn.head_gate.bias
        assert bias.abs().min() > 0, "logit(1/2) is zero, from where training moved it"


def test_every_quantisation_has_a_name_of_its_own():
    four = {"weight_bits": 4, "activation_bits": 4}
    called = {
        ("max-W8A8", "SmoothQuant"): QuantizationRow(),
        ("max-W8A8-clip1", "SmoothQuant, 1 % clipped"): QuantizationRow(weight_clip_percent=1),
        ("max-W8A8-gptq", "SmoothQuant, GPTQ"): QuantizationRow(rounding="gptq"),
        ("max-W4A4-omniquant", "OmniQuant"): QuantizationRow(method="omniquant", **four),
        ("max-W4A4-rotation-gptq", "Rotation, GPTQ"): QuantizationRow(method="rotation", rounding="gptq", **four),
        ("max-W4A4-rotation-gptq-clip1", "Rotation, GPTQ, 1 % clipped"): QuantizationRow(
            method="rotation", rounding="gptq", weight_clip_percent=1, **four
        ),
        ("max-W4A4-flatquant-gptq", "FlatQuant, GPTQ"): QuantizationRow(method="flatquant", rounding="gptq", **four),
        ("max-W4A4-rotation-asymmetric", "Rotation, asymmetric tokens"): QuantizationRow(
            method="rotation", activation_grid="asymmetric", **four
        ),
        ("max-W4A4-round-share0.9-heads", "Rounding, 90 % of their range, scales by head"): QuantizationRow(
            method="round", activation_clip=0.9, state_grids="head", **four
        ),
        ("max-W8A8-round", "Rounding"): QuantizationRow(method="round"),
        ("max-W8A8-round-clip2.5", "Rounding, 2.5 % clipped"): QuantizationRow(method="round", weight_clip_percent=2.5),
    }
    assert [(pipeline.model_name("max", row), method_title(row)) for row in called.values()] == list(called)
    assert pipeline.model_name("max", None) == "max"


def test_the_models_listen_and_speak(tiny_run):
    lm = sparq.load(tiny_run.folder / "max" / "speechlm")
    assert installed(lm.model).sink == "max"
    heard = lm.transcribe(tiny_run.audio, SHORT)
    assert isinstance(heard, str)
    assert lm.transcribe([load_audio(tiny_run.audio)], SHORT) == [heard]
    waveform, rate = lm.speak("Come back soon!", SHORT)
    assert (waveform.dtype, rate) == (np.float32, 16_000)
    assert np.trim_zeros(waveform, "b").size % 384 == 0  # behind it is silence
    assert waveform.any()
    quantised = sparq.load(tiny_run.folder / "max-W8A8" / "speechlm")
    assert quantised.model.config.quantization_config.settings.bits == "W8A8"
    assert installed(quantised.model).sink == "max"
    assert quantised.vocabulary.fingerprint == lm.vocabulary.fingerprint


def test_a_killed_adaptation_goes_on(tiny_run, copied):
    more = ["adaptation.steps=80", "adaptation.save_every=10", "attention.sinks=[none]", "quantization=[]"]
    more += ["evaluation.sentences=1", "evaluation.spoken=[]", "evaluation.recordings=[]", f"output={copied}"]
    command = [sys.executable, "-m", "sparq.cli", "run", str(tiny_run.recipe), *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(copied.glob(".none.*.partial/training/checkpoint-10/trainer_state.json")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    events, steps = [], []
    watcher = Watcher(lambda event: events.append((event.name, event.state)), lambda step, *_: steps.append(step))
    rows, report = finish(load_recipe(tiny_run.recipe, more), watcher, quiet=True)
    assert ("none", "resumed") in events
    assert [name for name, state in events if state == "skipped"] == ["corpus", "vocabulary", "vocoder"]
    assert steps[0] > 10
    assert steps[-1] == 80
    history = json.loads((copied / "none" / "training" / "history.json").read_text())
    assert [entry["step"] for entry in history] == list(range(1, 81))
    assert len(rows) == 1
    assert report.is_file()
    assert not list(copied.glob(".*"))


def test_a_model_of_other_pieces_is_refused_before_it_is_trained(tiny_run, copied):
    name = f"model.name={tiny_run.folder}/{{sink}}/speechlm"
    run = Run(load_recipe(tiny_run.recipe, [f"output={copied}", name, "vocabulary.size=234"]))
    with pytest.raises(UserError, match="vocabulary"):
        run.adapted("max")
    assert not list(copied.glob(".max*"))
    lm = sparq.load(copied / "max" / "speechlm")  # the old one stays
    assert lm.vocabulary.size == 136


def test_a_model_of_these_pieces_is_adapted_further(tiny_run, copied):
    name = f"model.name={tiny_run.folder}/{{sink}}/speechlm"
    run = Run(
        load_recipe(tiny_run.recipe, [f"output={copied}", name, "adaptation.steps=1", "adaptation.warmup_steps=0"])
    )
    run.adapted("max")
    old = sparq.load(tiny_run.folder / "max" / "speechlm").model.get_input_embeddings().weight
    new = sparq.load(copied / "max" / "speechlm").model.get_input_embeddings().weight
    assert 0 < (old - new).abs().max() < 2e-3  # one step of Adam from where it was


def test_a_text_model_keeps_its_words_and_is_asked_for_them(tiny_run, copied, tmp_path, monkeypatch):
    texts = ["Come back soon.", "The old mill is closed."]
    words = len(byte_tokenizer(tmp_path / "lm", texts))
    text_model = LlamaForCausalLM(
        LlamaConfig(vocab_size=words, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    text_model.save_pretrained(tmp_path / "lm")
    asked = []
    says = TextTeacher.probabilities
    monkeypatch.setattr(TextTeacher, "probabilities", lambda *given: asked.append(1) or says(*given))
    changed = {
        "output": copied, "model.name": tmp_path / "lm", "vocabulary.mode": "extend", "vocabulary.size": 40,
        "vocabulary.normalisation": "none", "adaptation.method": "lora", "adaptation.text_targets": "model",
        "adaptation.task_weights": "{textlm: 1}",
    }  # fmt: skip
    run = Run(load_recipe(tiny_run.recipe, [f"{key}={value}" for key, value in changed.items()]))
    run.adapted("max")
    lm = sparq.load(copied / "max" / "speechlm")
    assert lm.vocabulary.text_size == words
    assert torch.equal(lm.model.get_input_embeddings().weight[:words], text_model.get_input_embeddings().weight)
    assert asked
    # Other weights in the folder are another model, under the same settings.
    before = run.adapted("max").fingerprint
    kept = tmp_path / "lm" / "model.safetensors"
    bytes_of_the_first = kept.read_bytes()
    LlamaForCausalLM(text_model.config).save_pretrained(tmp_path / "lm")
    other = Run(load_recipe(tiny_run.recipe, [f"{key}={value}" for key, value in changed.items()]))
    assert other.adapted("max").fingerprint != before
    assert other.vocabulary_manifest.fingerprint == run.vocabulary_manifest.fingerprint
    kept.write_bytes(bytes_of_the_first)
    # Another tokenizer is another vocabulary, under the same settings.
    byte_tokenizer(tmp_path / "lm", [*texts, "What time is it, she asked."])
    again = Run(load_recipe(tiny_run.recipe, [f"{key}={value}" for key, value in changed.items()]))
    assert again.vocabulary_manifest.fingerprint != run.vocabulary_manifest.fingerprint
    # Nobody says what a text would be like to a model that speaks already.
    spoken = Run(load_recipe(tiny_run.recipe, [f"output={copied}", "adaptation.text_targets=model",
                                               f"model.name={tiny_run.folder}/{{sink}}/speechlm"]))  # fmt: skip
    for late in (lambda: spoken.adapted("none"), spoken.check):
        with pytest.raises(UserError, match="text_targets: model"):
            late()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("vocoder.name=nowhere", "nowhere"),
        ("vocoder.name=null & vocoder.start=nowhere", "nowhere"),
        ("vocoder.name=null & vocoder.speaker_encoder=./nowhere", "nowhere"),
        ("vocabulary.name=nowhere", "nowhere"),
        ("vocabulary.mode=extend", "vocabulary.mode"),
        ("adaptation.text_targets=model", "adaptation.text_targets: model needs model.name"),
        (
            "adaptation.text_targets=model & model.name=lm",
            "needs model.name (the text model that textLM learns from) and",
        ),
        ("model.name=path/to/nowhere", "model.name: path/to/nowhere: there is no such folder"),
        ("vocabulary.mode=extend & vocabulary.name=null & model.name=wordless", "its tokenizer cannot be loaded"),
        ("quantization=[{}, {alpha: 0.3}]", "W8A8"),
        ("evaluation.recordings=[{path: nowhere.wav}]", "nowhere.wav"),
        ("corpus.sources.0.path=nowhere.tsv", "nowhere.tsv"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_made(tiny_run, tmp_path, monkeypatch, setting, told):
    monkeypatch.chdir(tmp_path)
    LlamaConfig(hidden_size=8, num_attention_heads=1).save_pretrained("wordless")
    recipe = load_recipe(tiny_run.recipe, [*setting.split(" & "), f"output={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=re.escape(told)):
        finish(recipe, Watcher(), quiet=True)
    assert not (tmp_path / "run").exists()


def test_two_processes_run_a_recipe(tiny_run, tmp_path, two_processes):
    """As ``torchrun --nproc-per-node=2`` starts them: one makes what there is to make, both train, one tells."""
    settings = [f"output={tmp_path / 'run'}", f"corpus={{name: {tiny_run.folder / 'corpus'}}}", "quantization=[]"]
    command = [sys.executable, "-m", "sparq.cli", "run", str(tiny_run.recipe), *settings]
    told, silent = two_processes(command)
    assert "report.html" in told
    assert not silent
    for sink in ("none", "max"):
        alone, both = (folder / sink / "training" / "history.json" for folder in (tiny_run.folder, tmp_path / "run"))
        alone, both = (json.loads(path.read_text()) for path in (alone, both))
        assert both[-1]["step"] == alone[-1]["step"]
        assert both[-1]["loss"] != alone[-1]["loss"]  # of twice as many batches
        assert not list((tmp_path / "run" / sink / "training").glob("checkpoint-*"))
