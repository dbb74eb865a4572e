"""The paper's recipes from corpora to scores: every stage, on miniature corpora and random models of the same kinds.

Settings are overridden for sizes and paths alone; the kinds of parts, the tasks of each corpus and the methods are
those that the recipes name.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections import defaultdict

import miniature
import pytest
import torch
from transformers import HubertConfig, HubertModel, OPTConfig, OPTForCausalLM

import sparq
from sparq.adaptation.training import MEMORY
from sparq.attention import installed
from sparq.cli import main
from sparq.language.tasks import TASKS
from sparq.making import SPEECHLM, TRAINING, Watcher
from sparq.paper.summary import finish
from sparq.pipeline import RESULT, Run
from sparq.quantization.config import LEARNT_GROUP_SIZE
from sparq.recipe import load_recipe
from sparq.speech import generator
from sparq.speech.discriminators import DiscriminatorConfig
from sparq.speech.vocoder import VocoderConfig
from sparq.speech.vocoder_training import VocoderTraining

SHAPE = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32}
MODELS = {
    "125m": {"word_embed_proj_dim": 16},
    "350m": {"word_embed_proj_dim": 8, "do_layer_norm_before": False},  # embeddings narrower, norms behind
    "1.3b": {"word_embed_proj_dim": 16},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the corpora, an encoder and language models, and the overrides that lead to them."""
    root = tmp_path_factory.mktemp("paper")
    with gzip.open(root / "librispeech-lm-norm.txt.gz", "wt") as file:
        file.write("".join(f"{one} AND {other}\n".upper() for one in miniature.TEXTS for other in miniature.TEXTS[:2]))
    miniature.librilight(root / "librilight", seconds=2.4)
    miniature.mls(root / "mls_english", miniature.TEXTS[:4], "flac")
    miniature.libritts(root / "LibriTTS", "train-clean-100", miniature.TEXTS[4:8])
    miniature.libritts(root / "LibriTTS", "test-clean", miniature.TEXTS[8:10])
    miniature.vctk(root / "VCTK-Corpus-0.92", miniature.TEXTS[10:])
    miniature.ljspeech(root / "LJSpeech-1.1", miniature.TEXTS[:2])
    torch.manual_seed(0)
    hubert = HubertConfig(
        hidden_size=16, num_hidden_layers=7, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    HubertModel(hubert).save_pretrained(root / "hubert")
    for size, kind in MODELS.items():
        OPTForCausalLM(OPTConfig(**SHAPE, **kind, max_position_embeddings=512)).save_pretrained(root / f"opt-{size}")
    sources = load_recipe("paper-opt-125m").corpus.sources
    paths = {f"corpus.sources.{i}.path": source.path.replace("data", str(root)) for i, source in enumerate(sources)}
    sizes = {f"corpus.sources.{i}.held_out": 1 for i, source in enumerate(sources) if source.held_out}
    for i, source in enumerate(sources):  # what is for testing alone stays so
        if source.limit:
            sizes[f"corpus.sources.{i}.limit"] = 1 if source.limit == source.held_out else 6
    settings = paths | sizes | {
        "output": root / "run", "corpus.sources.3.parts": "[train-clean-100]", "corpus.processes": 1,
        "corpus.encoder.name": root / "hubert", "corpus.units.clusters": 20, "corpus.units.fit_utterances": 20,
        "vocabulary.size": 80, "vocoder.steps": 1, "vocoder.batch": 1,
        "adaptation.steps": 2, "adaptation.batch_bins": 600, "adaptation.lora.rank": 4, "adaptation.lora.alpha": 4,
        "evaluation.sentences": 1, "evaluation.max_pieces": 4, "evaluation.recogniser": "moonshine-tiny",
    }  # fmt: skip
    return root, [f"{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module", autouse=True)
def tiny_vocoder():
    """The paper's vocoder and its training with the sizes made small; their presets have no key for it."""
    few = {"duration_steps": 2, "segment": 8, "discriminators": DiscriminatorConfig((2,), (4, 4), 1, 16)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(generator._PRESETS, "paper", VocoderConfig.preset("paper", channels=32, embedding=8))
        patch.setattr(VocoderTraining, "preset", classmethod(lambda cls, name, steps: cls(steps=steps, **few)))
        yield


def recipe(world, size, *more):
    root, settings = world
    rows = load_recipe(f"paper-opt-{size}").quantization
    few = [f"quantization.{i}.calibration_sequences=4" for i in range(len(rows))]
    few += [f"quantization.{i}.epochs=1" for i, row in enumerate(rows) if row.method != "smoothquant"]
    return load_recipe(f"paper-opt-{size}", [*settings, *few, f"model.name={root / f'opt-{size}'}", *more])


@pytest.mark.parametrize("size", MODELS)
def test_the_recipes_hold_the_papers_values(size):
    """Section 4 (a corpus for each task), appendix E.1, E.2 and E.3."""
    read = load_recipe(f"paper-opt-{size}")
    assert read.model.name == f"facebook/opt-{size}"
    serving = {source.name: source.tasks for source in read.corpus.sources if not source.name.endswith("-test")}
    assert serving == {
        "librispeech-lm": None,
        "librilight": None,
        "mls": ("asr",),
        "libritts": ("tts",),
        "vctk": ("tts",),
        "ljspeech": (),
    }
    kinds = {source.name: source.kind for source in read.corpus.sources}
    assert (kinds["librispeech-lm"], kinds["librilight"]) == ("text-only", "audio-only")
    adaptation = read.adaptation
    assert (adaptation.method, adaptation.optimizer, adaptation.learning_rate) == ("lora", "adam", 3e-4)
    assert (adaptation.batch_bins, adaptation.warmup_steps, adaptation.weight_decay) == (5000, 2500, 1e-6)
    lora = adaptation.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (256, 256, 0.05, ("q", "k", "v", "o", "mlp"))
    for row in read.quantization:
        assert (row.alpha, row.stability_factor, row.calibration_sequences, row.group_size) == (0.5, 0.01, 256, None)
    assert LEARNT_GROUP_SIZE == 128
    assert read.corpus.encoder.name == "facebook/hubert-base-ls960"
    assert (read.corpus.units.clusters, read.vocabulary.deduplicate, read.vocoder.preset) == (200, False, "paper")
    assert read.evaluation.recogniser.startswith("openai/whisper")


def test_a_check_says_what_would_be_read_and_makes_nothing(world, capsys):
    root, settings = world
    command = [
        "run",
        "paper-opt-125m",
        "--check",
        *settings,
        f"model.name={root / 'opt-125m'}",
        f"output={root / 'no'}",
    ]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sources"]["libritts"] == {"train": 4, "held_out": 0}
    assert told["sources"]["mls-test"] == {"train": 0, "held_out": 1}
    assert len(told["models"]) == 3 * 7
    assert main(command) == 0
    assert re.search(r"^librilight +1 to train on +1 held out$", capsys.readouterr().out, re.MULTILINE)
    assert not (root / "no").exists()
    assert main(["run", "paper-opt-125m", "--check"]) == 2
    assert capsys.readouterr().err == "sparq: data/librispeech-lm-norm.txt.gz: no such file or folder\n"


def test_from_corpora_to_the_report(world):
    rows, report = finish(recipe(world, "125m", "attention.sinks=[max]"), Watcher(), quiet=True)
    assert [(row["bits"], row["method"]) for row in rows] == [
        ("W16A16", None),
        *((f"W{bits}A{bits}", method) for bits in (8, 4) for method in ("SmoothQuant", "OmniQuant", "AffineQuant")),
    ]
    assert report.is_file()
    for row in rows:
        assert all(row[name] is not None for name in ("text_perplexity", "speech_perplexity", "asr_wer", "tts_wer"))
    corpus = Run(recipe(world, "125m")).corpus
    for split in ("train", "held_out"):
        served = defaultdict(set)
        for source in corpus.sources:
            for one in corpus.utterances(split, [source]):
                for task in TASKS.values():
                    served[task.name] |= {source} if one.serves(task) else set()
        told = {"textlm": {"librispeech-lm"}, "speechlm": {"librilight"}, "asr": {"mls"}, "tts": {"libritts", "vctk"}}
        tested = told | {"asr": {"mls-test"}, "tts": {"libritts-test"}}
        assert served == (told if split == "train" else tested)
    spoken = corpus.recordings()
    assert len(spoken) == len(corpus.recordings(["ljspeech"])) == 2
    lm = sparq.load(world[0] / "run" / "max" / SPEECHLM)
    assert lm.vocoder.config.hop == 320
    assert lm.vocabulary.size == 80


@pytest.mark.parametrize(("size", "sink"), [("350m", "max"), ("350m", "none"), ("1.3b", "zero")])
def test_larger_models_share_what_is_made_before_them(world, size, sink):
    smallest = Run(recipe(world, "125m"))  # no other test need have made them (this may be another process)
    assert smallest.vocabulary
    assert smallest.vocoder_manifest
    states = []
    run = Run(recipe(world, size), Watcher(stage=lambda event: states.append((event.name, event.state))), variant=size)
    affine = run.recipe.quantization[-1]
    for row in (None, affine):
        folder = run.folder / run.scored(sink, row).kind.removeprefix("stage:")
        scores = json.loads((folder / RESULT).read_text())
        assert (scores["asr"]["utterances"], scores["tts"]["utterances"]) == (1, 1)
        assert scores["scores"]["speech_perplexity"] > 1
    assert {name for name, state in states if state == "skipped"} >= {"corpus", "vocabulary", "vocoder"}
    model = sparq.load(run.folder / f"{size}-{sink}-W4A4-affinequant" / SPEECHLM).model
    assert installed(model).sink == sink
    assert model.config.do_layer_norm_before == (size != "350m")
    assert model.config.word_embed_proj_dim == (8 if size == "350m" else 16)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize(("size", "bits"), [("125m", 8), ("350m", 4)])
def test_qlora(world, size, bits):
    """Tables 2 and 10: the same on a frozen base of 8 or 4 bits."""
    settings = ["adaptation.method=qlora", f"adaptation.qlora.bits={bits}"]
    run = Run(recipe(world, size, *settings), variant=f"{size}-qlora{bits}")
    run.check()
    run.adapted("max")
    packed = json.loads((run.folder / run.name("max") / TRAINING / MEMORY).read_text())
    assert 0 < packed["after"] < packed["before"]
    model = sparq.load(run.folder / run.name("max") / SPEECHLM).model
    assert installed(model).sink == "max"
