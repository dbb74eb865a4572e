"""The command line: what every command prints, and how it ends when it is given what it cannot use."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from sparq import cli
from sparq.artifacts import read_manifest
from sparq.language.speech_lm import SpeechLM
from sparq.speech.audio import load_audio, save_audio

COMMANDS = [
    "demo", "run", "finetune", "adapt", "quantize", "evaluate", "outliers", "transcribe", "speak", "continue", "corpus",
    "voices", "units", "vocoder", "export", "deploy", "assets", "paper", "bench",
]  # fmt: skip


@pytest.fixture
def sparq(capfd, monkeypatch, tmp_path):
    """Run a command in an empty folder; gives its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, stdin: bytes = b""):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(stdin), read=stdin.decode))
        capfd.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def lm(tiny_run):
    return tiny_run.folder / "max" / "speechlm"


@pytest.fixture
def corpus(tiny_run):
    return tiny_run.folder / "corpus"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(sparq, command):
    code, out, err = sparq(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: sparq {command}")


def test_all_commands_are_listed(sparq):
    _, out, _ = sparq("--help")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == COMMANDS


# ---- what is wrong is said in one line, and nothing is left behind


WRONG = {
    "no command": ("", "COMMAND"),
    "unknown command": ("listen", "listen"),
    "unknown option": ("transcribe --loud a.wav", "--loud"),
    "unknown recipe": ("run dmeo", "did you mean demo?"),
    "missing recipe": ("run nowhere.yaml", "nowhere.yaml"),
    "recipe that is no YAML": ("run broken.yaml", "broken.yaml: line"),
    "unknown key in a recipe": ("run demo adaptation.stpes=3", "adaptation.stpes"),
    "value out of range": ("run demo adaptation.steps=0", "adaptation.steps: 0"),
    "unknown sink": ("run demo attention.sinks=[maximum]", "maximum"),
    "no setting": ("run demo steps", "'steps'"),
    "unknown sink to adapt with": ("adapt {corpus} -o out --sink maximum --model {lm}", "maximum"),
    "unknown key to adapt with": ("adapt {corpus} -o out --model {lm} stpes=3", "stpes"),
    "adapt to no corpus": ("adapt {lm} -o out --model {lm}", "expected a corpus"),
    "adapt into a folder of others": ("adapt {corpus} -o mine --model {lm} steps=1", "mine: is in the way"),
    "quantise into a folder of others": ("quantize {corpus} -o mine --model {lm}", "mine: is in the way"),
    "quantise to no width": ("quantize {corpus} -o out --model {lm} --weight-bits 1", "weight_bits"),
    "quantise, learn and clip": (
        "quantize {corpus} -o out --model {lm} --method omniquant --weight-clip-percent 1", "weight_clip_percent"
    ),
    "quantise to no grid": ("quantize {corpus} -o out --model {lm} --state-grids row", "state_grids: 'row'"),
    "quantise by no method": ("quantize {corpus} -o out --model {lm} --method magic", "magic"),
    "round to no grid": ("quantize {corpus} -o out --model {lm} --rounding up", "rounding: 'up'"),
    "evaluate on a missing folder": ("evaluate nowhere --model {lm}", "nowhere: not a SpARQ corpus"),
    "evaluate nothing": ("evaluate {corpus} --model {lm} --sentences 0", "--sentences"),
    "evaluate an unknown source": ("evaluate {corpus} --model {lm} --source tini", "'tini'"),
    "outliers of nothing": ("outliers nowhere --model {lm}", "nowhere: not a SpARQ corpus"),
    "outliers of an empty text": ("outliers empty.txt --model {lm}", "empty.txt: has no text in it"),
    "outliers of no model at all": ("outliers notes.txt --model ./nowhere", "./nowhere: neither a SpeechLM nor"),
    "outliers into no picture": ("outliers {corpus} --model {lm} -o a.gif", "a.gif: unknown format"),
    "outliers into a missing folder": ("outliers {corpus} --model {lm} -o nowhere/a.svg", "nowhere is no folder"),
    "outliers of a missing model": ("outliers {corpus} --model nowhere", "nowhere: not a SpARQ speechlm"),
    "transcribe a missing file": ("transcribe nowhere.wav --model {lm}", "nowhere.wav: no such file"),
    "transcribe a text file": ("transcribe notes.txt --model {lm}", "notes.txt: not audio"),
    "transcribe with a missing model": ("transcribe {audio} --model nowhere", "nowhere"),
    "transcribe with what is no model": ("transcribe {audio} --model {corpus}", "expected a speechlm"),
    "transcribe from empty standard input": ("transcribe - --model {lm}", "not audio"),
    "beam of no width": ("transcribe {audio} --model {lm} --beam 0", "--beam"),
    "temperature of 0": ("transcribe {audio} --model {lm} --temperature 0", "temperature"),
    "beam and sampling": ("transcribe {audio} --model {lm} --beam 2 --top-p 0.5", "--beam"),
    "speak without a file": ("speak hello --model {lm}", "-o"),
    "speak nothing": ("speak {empty} -o out.wav --model {lm}", "nothing in it that can be said"),
    "speak to no format": ("speak hello -o out.xyz --model {tiny}", "out.xyz"),
    "speak to a missing folder": ("speak hello -o nowhere/out.wav --model {tiny}", "nowhere"),
    "speak to a folder": ("speak hello -o folder.wav --model {tiny}", "folder.wav: cannot be written"),
    "speak in a voice that is not there": (
        "speak hello -o out.wav --voice ann --model {tiny}", "speaks with one voice alone"
    ),
    "raw samples into a file": ("speak hello -o out.wav --raw --model {tiny}", "--raw: goes with -o -"),
    "stream to no format": ("speak hello -o out.xyz --stream --model {tiny}", "out.xyz"),
    "continue text in a voice": ("continue hello --voice ann --model {lm}", "--voice: ann"),
    "evaluate a missing vocoder": ("evaluate {corpus} --vocoder nowhere", "nowhere"),
    "continue speech without a file": ("continue {audio} --model {lm}", "-o: missing"),
    "continue text into a file": ("continue hello -o out.wav --model {lm}", "-o: out.wav"),
    "continue missing speech": ("continue nowhere.wav -o out.wav --model {lm}", "nowhere.wav: no such file"),
    "corpus of a missing folder": ("corpus nowhere -o out", "nowhere: no such file or folder"),
    "corpus of nothing": ("corpus empty -o out", "empty"),
    "corpus of silence on disk": ("corpus mine -o out", "mine"),
    "corpus in a folder of others": ("corpus said -o mine --codebook codebook", "mine: is in the way"),
    "corpus with a missing codebook": ("corpus said -o out --codebook nowhere", "nowhere"),
    "corpus with an unknown setting": ("corpus said -o out --set sede=1", "sede"),
    "units of a text file": ("units notes.txt", "notes.txt: not audio"),
    "units of a missing codebook": ("units {audio} --codebook nowhere", "nowhere"),
    "vocoder of no corpus": ("vocoder said -o out", "said: not a SpARQ corpus"),
    "vocoder that starts from nothing": ("vocoder {corpus} -o out start=nowhere", "nowhere: no such shipped weights"),
    "vocoder with an unknown setting": ("vocoder {corpus} -o out spets=1", "spets"),
}  # fmt: skip


@pytest.fixture(scope="module")
def quick(tiny_run, tmp_path_factory):
    """The tiny model, held to few pieces by its positions, so that it soon stops speaking."""
    folder = tmp_path_factory.mktemp("quick") / "lm"
    from sparq.language.speech_lm import SpeechLM

    lm = SpeechLM.load(tiny_run.folder / "max" / "speechlm")
    lm.model.config.max_position_embeddings = 48
    lm.save(folder)
    return folder


@pytest.mark.parametrize("case", WRONG)
def test_one_line_exit_code_2_and_nothing_left(sparq, tiny_run, lm, corpus, quick, tmp_path, case):
    line, told = WRONG[case]
    (tmp_path / "notes.txt").write_text("not audio at all")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    for folder in ("empty", "mine", "folder.wav", "said"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    shutil.copy(tiny_run.audio, tmp_path / "said" / "one.wav")
    (tmp_path / "said" / "one.txt").write_text("come back soon")
    before = sorted(tmp_path.rglob("*"))
    names = {"corpus": corpus, "lm": lm, "audio": tiny_run.audio, "empty": "", "tiny": quick}
    code, out, err = sparq(*(word.format(**names) for word in line.split()))
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("sparq")
    assert told in err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_what_breaks_is_one_line_too_and_debug_shows_where(sparq, monkeypatch):
    def broken(_):
        raise RuntimeError("the disk\nis on fire")

    monkeypatch.setattr("sparq.assets.packaged", broken)
    assert sparq("assets") == (1, "", "sparq: RuntimeError: the disk is on fire (--debug shows where)\n")
    with pytest.raises(RuntimeError):
        cli.main(["--debug", "assets"])


def test_stopped(sparq, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparq.assets.packaged", stopped)
    code, _, err = sparq("assets")
    assert code == 130
    assert err.count("\n") == 1


def test_as_a_program():
    command = [sys.executable, "-m", "sparq.cli", "run", "nowhere.yaml"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "sparq: nowhere.yaml: there is no such recipe file\n"


# ---- what the commands do


def test_assets(sparq):
    code, out, _ = sparq("assets", "--json")
    found = {asset["name"]: asset for asset in json.loads(out)}
    assert code == 0
    assert found["codebook"]["kind"] == "shipped"
    assert found["hibari"]["missing"] is None
    _, out, _ = sparq("assets")
    assert len(out.splitlines()) == len(found)


def test_voices(sparq, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARQ_CACHE", str(tmp_path))
    code, out, _ = sparq("voices", "hibari", "kokoro-af_sky", "--json")
    hibari, sky = json.loads(out)
    assert (code, hibari) == (0, {"name": "hibari", "missing": None})
    assert sky["missing"].startswith("kokoro-af_sky: ")
    _, out, _ = sparq("voices", "flite")
    assert [line.split()[0] for line in out.splitlines()] == ["flite-awb", "flite-rms", "flite-slt", "flite-kal"]
    code, out, _ = sparq("voices", "hibari", "--say", "Yes.", "--speed", "0.5", "-o", "said")
    assert (code, out) == (0, f"said/hibari.wav: {len(load_audio('said/hibari.wav')) / 16000:.1f} s\n")
    Path("said.txt").write_text("Yes.\n")
    code, _, err = sparq("corpus", "said.txt", "--kind", "text", "--voice", "hibari", "--voice", "robot", "-o", "made")
    assert (code, err[:28]) == (2, "sparq: robot: no such voice;")
    assert sparq("voices", "robot")[0] == sparq("voices", "--say", "Yes.")[0] == 2


def test_units(sparq, tiny_run, corpus):
    code, out, _ = sparq("units", tiny_run.audio)
    raw = [int(unit) for unit in out.split()]
    assert code == 0
    assert len(raw) == pytest.approx(load_audio(tiny_run.audio).size / 384, abs=2)
    assert sparq("units", "-", stdin=tiny_run.audio.read_bytes())[1] == out
    assert sparq("units", tiny_run.audio, "--codebook", corpus / "codebook")[1] == out  # the shipped one was used
    _, out, _ = sparq("units", "--merged", "--json", tiny_run.audio)
    merged = [unit for index, unit in enumerate(raw) if index == 0 or raw[index - 1] != unit]
    assert json.loads(out) == [{"file": str(tiny_run.audio), "units": merged}]


def test_speak_and_continue(sparq, tiny_run, quick, tmp_path):
    code, out, err = sparq("speak", "Who?", "-o", "out.wav", "--model", quick)
    assert (code, err) == (0, "")
    said = load_audio(tmp_path / "out.wav")
    assert out == f"out.wav: {said.size / 16_000:.1f} s\n"
    sparq("speak", "-", "-o", "piped.wav", "--model", quick, stdin=b"Who?\n")
    np.testing.assert_array_equal(load_audio(tmp_path / "piped.wav"), said)
    code, out, err = sparq("speak", "Who?", "-o", "streamed.wav", "--stream", "--model", quick)
    assert (code, err) == (0, "")
    assert re.fullmatch(rf"streamed.wav: {said.size / 16_000:.1f} s, the first of it after \d+\.\d\d s\n", out)
    np.testing.assert_allclose(load_audio(tmp_path / "streamed.wav"), said, atol=1e-3)
    drawn = [sparq("continue", "who", "--model", quick, "--temperature", 2, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].startswith("who")
    assert sparq("continue", "-", "--model", quick, "--temperature", 2, "--seed", 1, stdin=b"who")[1] == drawn[0]


def test_continue_speech(sparq, tiny_run, lm, tmp_path):
    save_audio(tmp_path / "short.wav", load_audio(tiny_run.audio)[:8000])
    code, _, err = sparq("continue", "short.wav", "-o", "longer.ogg", "--model", lm, "--top-p", 0.5)
    assert (code, err) == (0, "")
    assert load_audio(tmp_path / "longer.ogg").size >= 7000


def test_evaluate_a_vocoder_alone(sparq, tiny_run, corpus, tmp_path):
    asked = ("evaluate", corpus, "--vocoder", tiny_run.folder.parent / "voice", "--sentences", 2)
    code, out, err = sparq(*asked, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["utterances"] == 2  # of those held out, whose audio is kept where any is
    assert set(told["wer"]) == {"recordings", "raw units", "merged units"}
    assert told["distance"]["raw units"]["mel_cepstral_distortion"] > 1
    code, out, err = sparq(*asked)
    assert (code, err) == (0, "")
    assert [line[:12] for line in out.splitlines()[:4]] == [
        "2 utterances",
        "recordings  ",
        "raw units   ",
        "merged units",
    ]


def test_evaluate_and_outliers(sparq, tiny_run, lm, corpus, tmp_path):
    asked = ("evaluate", corpus, "--model", lm, "--sentences", 3, "--max-pieces", 12)
    code, out, err = sparq(*asked, "--source", "tiny", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    row = next(row for row in tiny_run.rows if (row["sink"], row["bits"]) == ("max", "W16A16"))
    assert told["scores"] == {name: row[name] for name in told["scores"]}  # what the run measured
    code, out, _ = sparq("outliers", corpus, "--model", lm, "--sentences", 3, "--json")
    assert code == 0
    given = json.loads(out)
    shares = {kind: one.pop("sinks")["first_token_attention"] for kind, one in given["measured"].items()}
    assert given["measured"] == told["outliers"]
    assert all(0 < share < 1 for share in shares.values())
    assert given["made"]["commit"]
    assert told["outliers"]["speech with text"]["maximum_infinity_norm"] == row["maximum_infinity_norm"]
    _, out, _ = sparq("outliers", corpus, "--model", lm, "-o", "where.html")
    heads = ("text, 4 sequences", "speech, 4 sequences", "speech with text, 4 sequences")
    assert [line for line in out.splitlines() if "sequences" in line] == list(heads)
    assert out.splitlines()[-1] == "where.html"
    assert "<svg " in (tmp_path / "where.html").read_text()


def test_outliers_of_any_language_model_on_text(sparq, tmp_path):
    """A transformers model with a tokenizer of its own, on windows of a text file."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "lm")
    GPT2LMHeadModel(GPT2Config(vocab_size=3, n_embd=8, n_layer=2, n_head=2)).save_pretrained(tmp_path / "lm")
    (tmp_path / "book.txt").write_text("a b b a\n\nb a a b a a\n" * 4)
    asked = ("outliers", "book.txt", "--model", "lm", "--length", 9, "-o", "where.svg")
    code, out, err = sparq(*asked, "--json")
    assert (code, err) == (0, "")
    (one,) = json.loads(out)["measured"].values()
    assert (one["sequences"], len(one["infinity_norms"]), len(one["sinks"]["by_head"])) == (4, 11, 2)
    assert (tmp_path / "where.svg").read_text().startswith("<?xml")
    code, out, _ = sparq(*asked, "--sentences", 2)
    assert "text, 2 sequences" in out
    code, _, err = sparq(*asked[:-2], "--length", 99)
    assert code == 2
    assert "the text has 40 pieces" in err


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
    (tmp_path / "mine").mkdir()
    code, _, err = sparq("export", lm, "-o", "mine")
    assert (code, err) == (2, "sparq: mine: is in the way (it is no SpeechLM)\n")


def test_quantize(sparq, tiny_run, lm, corpus, tmp_path):
    asked = ("quantize", corpus, "-o", "small", "--model", lm, "--calibration", 4)
    code, out, err = sparq(*asked)
    assert (code, out, err) == (0, "small: smoothquant W8A8, simulated\n", "")
    made = read_manifest(tmp_path / "small", "speechlm")
    assert made.fingerprint == read_manifest(tiny_run.folder / "max-W8A8" / "speechlm", "speechlm").fingerprint
    stamp = (tmp_path / "small" / "config.json").stat().st_mtime_ns
    assert sparq(*asked)[0] == 0  # it is there already
    assert (tmp_path / "small" / "config.json").stat().st_mtime_ns == stamp
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


def test_adapt_with_settings_behind_the_options(sparq, lm, corpus, tmp_path):
    settings = ["method=lora", "lora.rank=2", "steps=2", "batch_bins=600", "warmup_steps=1", "log_every=1"]
    code, out, _ = sparq("adapt", corpus, "-o", "more", "--model", lm, "--sink", "zero", *settings)
    assert (code, out) == (0, "more/speechlm: 2 steps\n")
    assert read_manifest(tmp_path / "more" / "speechlm", "speechlm").settings["attention"]["sink"] == "zero"
    assert sparq("adapt", corpus, "-o", "once", "--model", lm, "batch_bins=600")[1] == "once/speechlm: 1 steps\n"
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


def test_corpus_of_recordings(sparq, tiny_run, tmp_path):
    (tmp_path / "said").mkdir()
    for name in ("one", "two"):
        shutil.copy(tiny_run.audio, tmp_path / "said" / f"{name}.wav")
        (tmp_path / "said" / f"{name}.txt").write_text(f"come back soon {name}")
    asked = ("corpus", "said", "-o", "made", "--codebook", "codebook", "--processes", 1, "--held-out", 1)
    code, out, _ = sparq(*asked, "--json")
    assert code == 0
    assert {name: json.loads(out)[name] for name in ("train", "held_out", "skipped")} == {
        "train": 1, "held_out": 1, "skipped": [],
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "said"]
    code, out, _ = sparq(*asked)  # complete
    assert code == 0
    assert out.startswith("made: 2 utterances (1 to train on, 1 held out)")


def test_run_as_json_and_as_a_table(sparq, tiny_run):
    code, out, err = sparq("run", "--json", tiny_run.recipe)
    assert (code, err) == (0, "")
    assert json.loads(out) == {"rows": tiny_run.rows, "report": str(tiny_run.report)}


def test_vocoder(sparq, corpus, tmp_path, monkeypatch):
    from sparq import making

    few = dataclasses.replace(making.VocoderTraining.preset("small"), duration_steps=2)
    monkeypatch.setattr(making.VocoderTraining, "preset", lambda _: few)
    code, out, _ = sparq("vocoder", corpus, "-o", "voice", "steps=1", "batch=1")
    assert (code, out) == (0, "voice\n")
    assert read_manifest(tmp_path / "voice", "vocoder").kind == "vocoder"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["voice"]


def test_paper_tables(sparq):
    code, out, err = sparq("paper", "list")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 12
    assert "2    low-rank adaptation (6 printed drops do not follow from their rows)" in out.splitlines()
    code, out, err = sparq("paper", "show", "2")
    assert (code, err) == (0, "")
    row = next(line for line in out.splitlines() if line.split()[:3] == ["OPT-350m", "vanilla", "lora"])
    assert row.split()[-2:] == ["233.98≠", "381.00"]
    told = json.loads(sparq("paper", "show", "2", "--json")[1])
    assert len(told["printed"]) == len(told["recomputed_drops"]) == 18
    assert sum(drop["printed_follows"] is False for drop in told["recomputed_drops"]) == 6
    assert "NaN loss" in sparq("paper", "show", "4")[1]
    code, out, err = sparq("paper", "show", "12")
    assert (code, out) == (2, "")
    assert err.startswith("sparq: table 12: the paper has none of this name")


def test_paper_theory(sparq, tiny_run, lm):
    asked = ("paper", "theory", "--model", lm, "--length", 24, "--sequences", 1)
    other = tiny_run.folder / "none" / "speechlm"
    code, out, err = sparq(*asked, "--before", other, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["theorem"]["sufficient"] == 4
    assert told["proposition"]["length"] == 24
    (layer,) = told["proposition"]["layers"]
    assert min(layer["keys"], layer["queries"], layer["adapters"]) > 0
    code, out, err = sparq(*asked)
    assert (code, err) == (0, "")
    assert out.startswith("Theorem C.1, random models: gaps 7, 7, 7, sufficient rank 4\n")
    assert "Proposition C.1, 2 sequences of 24 pieces: √(ln L) = 1.78" in out
    assert f"{layer['keys']:.2f}" in out
    assert sparq(*asked[:4], "--length", 9999)[0] == 2
