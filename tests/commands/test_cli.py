"""The command line: what every command prints, and how it ends when it is given what it cannot use."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from sparq import cli

COMMANDS = [
    "demo", "run", "finetune", "adapt", "quantize", "evaluate", "outliers", "transcribe", "speak", "continue", "corpus",
    "voices", "units", "vocoder", "export", "deploy", "assets", "paper", "bench",
]  # fmt: skip


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
    "no setting behind an option": ("finetune said -o out steps", "arguments: steps (settings are KEY=VALUE)"),
    "a run whose corpus another makes": ("run small --check", "sparq run small-trunk makes it"),
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
    "outliers of no model at all": ("outliers notes.txt --model ./nowhere", "--model: ./nowhere: there is no such folder"),
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
    "speak to raw samples": ("speak hello -o out.raw --model {tiny}", "out.raw: .raw"),
    "a seed of nothing": ("transcribe {audio} --model {lm} --seed 3", "--seed: 3"),
    "a seed of a beam": ("speak hello -o out.wav --model {tiny} --beam 1 --seed 3", "--seed: 3"),
    "export into a file": ("export {lm} -o notes.txt/out", "notes.txt/out: cannot be written"),
    "deploy into a file": ("deploy {lm} -o notes.txt/out", "notes.txt/out: cannot be written"),
    "voices into a file": ("voices --say Hi -o notes.txt", "notes.txt"),
    "measure nothing": ("bench deploy ./nowhere", "./nowhere"),
    "raw samples into a file": ("speak hello -o out.wav --raw --model {tiny}", "--raw: goes with -o -"),
    "stream to no format": ("speak hello -o out.xyz --stream --model {tiny}", "out.xyz"),
    "continue text in a voice": ("continue hello --voice ann --model {lm}", "--voice: ann"),
    "evaluate a missing vocoder": ("evaluate {corpus} --vocoder nowhere", "nowhere"),
    "continue speech without a file": ("continue {audio} --model {lm}", "-o: missing"),
    "continue a file that is not audio": ("continue notes.txt --model {lm}", "notes.txt: is a file, and not audio"),
    "continue speech under another name": ("continue said/recording --model {lm}", "-o: missing"),
    "continue text into a file": ("continue hello -o out.wav --model {lm}", "-o: out.wav"),
    "continue missing speech": ("continue nowhere.wav -o out.wav --model {lm}", "nowhere.wav: no such file"),
    "corpus of a missing folder": ("corpus nowhere -o out", "nowhere: no such file or folder"),
    "corpus of nothing": ("corpus empty -o out", "empty"),
    "corpus of silence on disk": ("corpus mine -o out", "mine"),
    "corpus in the working folder": ("corpus said -o . --codebook codebook", ".: is in the way (expected a new folder"),
    "finetune into the working folder": ("finetune said -o . --model {lm}", ".: is in the way"),
    "export into the root": ("export {lm} -o /", "/: is in the way"),
    "corpus in a folder of others": ("corpus said -o mine --codebook codebook", "mine: is in the way"),
    "corpus in place of a file": ("corpus said -o notes.txt --codebook codebook", "notes.txt: is in the way"),
    "corpus in a file": ("corpus said -o notes.txt/out --codebook codebook", "notes.txt/out: cannot be written"),
    "corpus with a missing codebook": ("corpus said -o out --codebook nowhere", "nowhere"),
    "corpus with an unknown setting": ("corpus said -o out --set sede=1", "sede"),
    "units of a text file": ("units notes.txt", "notes.txt: not audio"),
    "units of a missing codebook": ("units {audio} --codebook nowhere", "nowhere"),
    "vocoder of no corpus": ("vocoder said -o out", "said: not a SpARQ corpus"),
    "vocoder that starts from nothing": ("vocoder {corpus} -o out start=nowhere", "nowhere: no such shipped weights"),
    "vocoder of another hop": ("vocoder {corpus} -o out --preset paper", "paper has frames of 320 samples"),
    "vocoder with an unknown setting": ("vocoder {corpus} -o out spets=1", "spets"),
}  # fmt: skip


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
    shutil.copy(tiny_run.audio, tmp_path / "said" / "recording")
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
    assert (code, err) == (130, "sparq: stopped\n")
    monkeypatch.setattr("sparq.recipe.load_recipe", lambda *_: stopped(None))
    assert sparq("run", "demo")[2] == "sparq: stopped; the same command goes on from here\n"
    monkeypatch.setattr("sparq.commands.listening.transcript_format", stopped)
    for more, told in (([], ""), (["-o", "out"], "; the same command goes on from here")):
        assert sparq("transcribe", "a.wav", "b.wav", *more)[2] == f"sparq: stopped{told}\n"


def test_as_a_program():
    command = [sys.executable, "-m", "sparq.cli", "run", "nowhere.yaml"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "sparq: nowhere.yaml: there is no such recipe file\n"


def test_help_loads_nothing_heavy():
    program = (
        "import sys; from sparq import cli; cli._parser().format_help(); "
        "print(sorted({'torch', 'transformers', 'numpy', 'sparq.recipe', 'sparq.making'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_that_a_recording_is_missing_is_said_before_anything_heavy_is_loaded():
    program = (
        "import sys; from sparq.cli import main; main(['transcribe', 'nowhere.wav']); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "sparq: nowhere.wav: no such file\n")
