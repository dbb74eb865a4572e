"""Fine-tuning from a folder of recordings to a model with its card: what comes out, and how it comes back from a kill."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import pytest
import torch
from huggingface_hub import ModelCard

import sparq
from sparq import cli
from sparq.corpus.corpus import Corpus
from sparq.errors import UserError
from sparq.finetuning.defaults import adaptation_config
from sparq.finetuning.finetune import FineTuning
from sparq.finetuning.outcome import Outcome, table
from sparq.finetuning.recordings import look_at
from sparq.finetuning.rehearsal import general_text
from sparq.finetuning.scores import fitting, score
from sparq.making import Watcher

SETTINGS = ["steps=6", "save_every=2", "log_every=1", "batch_bins=200", "learning_rate=0.02", "lora.rank=2"]


class _KilledError(Exception):
    pass


def tuned(folder, base, output, *, settings=SETTINGS, method="lora", overwrite=False, **told):
    recordings = look_at(folder)
    config = adaptation_config(method, recordings.seconds, settings)
    options = {"beam": 2, "overwrite": overwrite, "watcher": Watcher(**told)}
    return FineTuning(folder, recordings, base, config, output, **options).run()


@pytest.fixture(scope="module")
def folder(record, tmp_path_factory):
    """Sixteen recordings, one too long for the model, one that is no sound, one nobody wrote down, one of no words."""
    folder = record(tmp_path_factory.mktemp("said") / "my voice")
    record(folder / "long", count=1, seconds=60)
    (folder / "broken.wav").write_text("no sound")
    (folder / "broken.txt").write_text("hi quinn")
    (folder / "long" / "ann.txt").write_text("Hi rob.")
    for name in ("untold", "empty"):
        shutil.copy(folder / "ann.wav", folder / f"{name}.wav")
    (folder / "empty.txt").touch()
    return folder


@pytest.fixture(scope="module")
def mine(folder, base, tmp_path_factory):
    """What the command makes, and what it prints."""
    output = tmp_path_factory.mktemp("runs") / "mine"
    tuned(folder, base, output)
    return output


def test_the_result_is_a_model_that_learnt(mine, folder, base):
    lm, before = sparq.load(mine), sparq.load(base)
    assert lm.prior_name == before.prior_name == "smollm2-135m"
    assert not torch.equal(lm.model.lm_head.weight, before.model.lm_head.weight)
    assert isinstance(lm.transcribe(str(folder / "ann.wav"), sparq.GenerationOptions(max_pieces=3)), str)
    outcome = Outcome.read(mine / "finetune.json")
    assert (outcome.folder, outcome.base, outcome.method) == ("my voice", "tiny", "lora")
    assert outcome.learnt + outcome.held_out == 16
    assert 6 <= outcome.held_out <= 8
    assert outcome.left_out == {
        "no transcript, or an empty one": 2,
        "not audio, or damaged": 1,
        "longer than the model's positions": 1,
    }
    assert outcome.kept in (2, 4, 6)
    assert outcome.after.asr_loss < outcome.before.asr_loss
    assert outcome.minutes == pytest.approx(outcome.learnt * 0.4 / 60, rel=0.1)
    assert outcome.rehearsed == 160
    assert sorted(path.name for path in mine.parent.iterdir()) == ["mine", "mine.work"]
    assert {path.name for path in mine.with_name("mine.work").iterdir()} == {"corpus", "before", "tuned", "after"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_numbers_are_those_of_the_models(mine, base, when):
    lm = sparq.load(base if when == "before" else mine)
    corpus = Corpus.load(mine.with_name("mine.work") / "corpus")
    learnt, held_out = (corpus.utterances(split) for split in ("train", "held_out"))
    assert not {one.text for one in learnt} & {one.text for one in held_out}
    assert {len(one.views) for one in held_out} == {3}  # heard as sparq transcribe hears
    general = general_text((one.text for one in learnt), ()).held_out
    again = score(lm, fitting(lm, held_out), general, 2)
    told = getattr(Outcome.read(mine / "finetune.json"), when)
    assert dataclasses.asdict(again) == pytest.approx(dataclasses.asdict(told), rel=1e-5)


def test_the_card_tells_the_same_numbers(mine):
    outcome = Outcome.read(mine / "finetune.json")
    card = ModelCard.load(mine / "README.md")
    assert card.data.library_name == "sparq"
    assert card.data.license is None
    for values in outcome.measured.values():
        assert "| " + " | ".join(f"{value:,.2f}" for value in values) + " |" in card.text
    for told in (
        f"learnt from | {outcome.minutes:.1f} minutes in {outcome.learnt} utterances |",
        f"held out | {outcome.held_out} utterances |",
        "# mine",
        "my voice",
        "`tiny`",
        "look up where tiny came from",
        "rank | 2",
    ):
        assert told in card.text
    assert str(mine.parent) not in card.text


def test_what_is_done_is_skipped_even_without_the_work(mine, folder, base, tmp_path):
    copied = tmp_path / "mine"
    shutil.copytree(mine, copied)
    events = []
    outcome = tuned(folder, base, copied, stage=events.append)
    assert [(event.name, event.state) for event in events] == [("mine", "skipped")]
    assert outcome == Outcome.read(mine / "finetune.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_model_is_replaced_only_when_that_is_asked_for_and_then_without_listening_again(mine, folder, base, tmp_path):
    for made in (mine, mine.with_name("mine.work")):
        shutil.copytree(made, tmp_path / made.name)
    settings, events = ["steps=1", "batch_bins=200"], []
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="mine: was made with other settings or inputs; overwrite it, or choose"):
        tuned(folder, base, tmp_path / "mine", settings=settings, stage=events.append)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not events
    outcome = tuned(folder, base, tmp_path / "mine", settings=settings, overwrite=True, stage=events.append)
    assert outcome.steps == 1
    begun = [(event.name, event.state) for event in events if event.state != "finished"]
    assert begun == [(name, "skipped") for name in ("corpus", "before")] + [
        (name, "rebuilt") for name in ("tuned", "after", "mine")
    ]


def test_other_settings_use_the_corpus_again_and_a_kill_changes_nothing(mine, folder, base, tmp_path):
    """A copy of the work goes on with other settings, is killed as it trains, and ends as if it had not been."""
    for name in ("mine", "whole"):
        shutil.copytree(mine.with_name("mine.work"), tmp_path / f"{name}.work")
    settings, events = [*SETTINGS, "learning_rate=0.01"], []

    def kill(step, share, logged):
        if step == 5:
            raise _KilledError

    with pytest.raises(_KilledError):
        tuned(folder, base, tmp_path / "mine", settings=settings, training=kill, stage=events.append)
    assert not (tmp_path / "mine").exists()
    tuned(folder, base, tmp_path / "mine", settings=settings, stage=events.append)
    states = [(event.name, event.state) for event in events]
    assert states[:3] == [("corpus", "skipped"), ("before", "skipped"), ("tuned", "rebuilt")]
    assert states[3:6] == [("corpus", "skipped"), ("before", "skipped"), ("tuned", "resumed")]
    whole = tuned(folder, base, tmp_path / "whole", settings=settings)
    assert whole.after == Outcome.read(tmp_path / "mine" / "finetune.json").after
    weights = [sparq.load(tmp_path / name).model.state_dict() for name in ("mine", "whole")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.fixture
def command(capfd, monkeypatch, tmp_path):
    """Run ``sparq finetune``; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capfd.readouterr()
        code = cli.main(["finetune", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def test_the_command(command, record, base, mine, tmp_path):
    """By all weights, from telephone recordings, without general text to rehearse."""
    record(tmp_path / "said", rate=8000)
    asked = ("said", "-o", "runs/phone", "--model", base, "--method", "full", "--beam", 1, "steps=2", "save_every=1")
    code, out, err = command(*asked, "--json", "--held-out", 4)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["model"], told["learnt"], told["held_out"], told["settings"]["method"]) == (
        "runs/phone",
        12,
        4,
        "full",
    )
    assert told["warnings"][0].startswith("16 of 16 recordings have fewer than 16,000 samples a second (8,000)")
    code, out, _ = command(*asked, "--held-out", 4)
    outcome = Outcome.read(tmp_path / "runs" / "phone" / "finetune.json")
    assert code == 0
    assert out == f"{table(outcome)}\nruns/phone: sparq transcribe --model runs/phone FILE\n"
    assert "full: 2 of 2 steps" in out
    assert f"{outcome.before.wer:.2f}" in out
    assert cli.main(["export", "runs/phone", "-o", "passed"]) == 0
    assert (tmp_path / "passed" / "README.md").read_text() == (tmp_path / "runs/phone/README.md").read_text()


WRONG = {
    "an empty folder": ("empty -o out", "empty: is empty (expected recordings and their transcripts)"),
    "a missing folder": ("nowhere -o out", "nowhere: no such file or folder"),
    "no transcripts": ("silent -o out", "silent: none of 1 recordings has a transcript"),
    "text alone": ("text.jsonl -o out", "text.jsonl: 1 of 1 sentences have no recording"),
    "too few sentences": ("few -o out", "few: of 3 different sentences 8 cannot be held out"),
    "too many held out": ("few -o out --held-out 2", "few: of 3 different sentences 2 cannot be held out"),
    "a folder in the way": ("few -o silent --held-out 1", "silent: is in the way"),
    "a target that cannot be": ("few -o text.jsonl/out --held-out 1", "text.jsonl/out: cannot be written"),
    "a ready corpus that holds out its own": ("{others} -o out --held-out 3", "--held-out: 3"),
    "no model": ("few -o out --model silent --held-out 1", "silent: not a SpARQ speechlm"),
    "a quantised model": ("few -o out --model {quantised} --held-out 1", "is quantised (simulated)"),
    "a deployed model": ("few -o out --model {deployed} --held-out 1", "small: is deployed; fine-tune the model"),
    "an unknown setting": ("few -o out stpes=3", "stpes"),
    "a method without its package": ("few -o out --held-out 1 --method qlora4", "qlora needs the package bitsandbytes"),
    "units of others": ("{others} -o out", "they do not belong together"),
    "too long for the model": ("long -o out --held-out 1", "none of the 2 recordings to learn from fits"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_and_exit_code_2(command, record, base, tiny_run, mine, monkeypatch, tmp_path, case):
    line, told = WRONG[case]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    for name in ("empty", "silent"):
        (tmp_path / name).mkdir()
    record(tmp_path / "few", count=3)
    shutil.copy(tmp_path / "few" / "ann.wav", tmp_path / "silent" / "one.wav")
    (tmp_path / "text.jsonl").write_text('{"text": "hello"}\n')
    names = {"quantised": tiny_run.folder / "max-W8A8" / "speechlm", "others": tmp_path / "others"}
    if "deployed" in line:
        names["deployed"] = tmp_path / "small"
        sparq.deploy(sparq.load(base), names["deployed"])
    if "long" in line:
        record(tmp_path / "long", count=3, seconds=60)
    if "others" in line:
        _with_another_codebook(mine.with_name("mine.work") / "corpus", tmp_path / "others")
    arguments = [word.format(**names) for word in line.split()]
    code, out, err = command(*arguments, *([] if "--model" in arguments else ["--model", base]))
    lines = [text for text in err.splitlines() if text.startswith("sparq: ")]
    assert (code, out, len(lines)) == (2, "", 1)
    assert told in lines[0]
    assert not (tmp_path / "out").exists()
    if "qlora" in line:
        assert not (tmp_path / "out.work").exists()  # nothing was listened to before it was said


def _with_another_codebook(corpus, folder):
    """A corpus like another, whose units are numbers of other centroids."""
    from sparq.artifacts import read_manifest, write_manifest
    from sparq.speech.units import Codebook

    shutil.copytree(corpus, folder)
    book = Codebook.load(folder / "codebook")
    other = dataclasses.replace(book, centroids=book.centroids[::-1].copy())
    other.save(folder / "codebook")
    known = read_manifest(folder, "corpus")
    write_manifest(folder, "corpus", known.settings, {**known.inputs, "codebook": other.fingerprint})
