"""A tiny grid from end to end: models adapted, quantised and scored as stages, skipped and shared the next time."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sparq.cli import main
from sparq.config import QuantizationRow
from sparq.errors import UserError
from sparq.making import Watcher
from sparq.paper import experiment
from sparq.paper.epoch_time import epoch_times
from sparq.paper.experiment import in_turn, measure, on_ray, open_run
from sparq.paper.grid import Cell
from sparq.paper.reproduction import Order, reproduce
from sparq.paper.scale import Adaptation, load_scale

ROW = QuantizationRow(calibration_sequences=4)
CELLS = [Cell("max", Adaptation("lora", 8)), Cell("max", row=ROW), Cell("max")]


@pytest.fixture(scope="module")
def scale_file(tiny_run, tmp_path_factory) -> Path:
    """A scale of the tiny recipe, in a folder of its own."""
    folder = tmp_path_factory.mktemp("scale")
    scale = {
        "name": "tiny", "description": "For tests.", "recipe": str(tiny_run.recipe), "stands_for": "OPT-125m",
        "rank_divisor": 4, "full": ["adaptation.steps=2"], "lora": ["adaptation.learning_rate=1e-3"],
        "settings": [f"output={folder / 'run'}", "evaluation.sentences=1", "evaluation.max_pieces=4"],
        "quantization": {"calibration_sequences": 4},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(scale))
    return folder / "tiny.yaml"


def test_a_grid_is_measured_once(scale_file):
    scale = load_scale(str(scale_file))
    events: dict[str, list[str]] = {}
    watcher = Watcher(stage=lambda event: events.setdefault(event.state, []).append(event.name))
    found = measure(scale, CELLS, 2, (), in_turn(watcher))
    models = {f"{name}-s{seed}-max" for name in ("full", "lora-8") for seed in (0, 1)}
    quantised = {f"full-s{seed}-max-W8A8" for seed in (0, 1)}
    scores = {f"scores-{name}-W16A16" for name in models} | {f"scores-{name}" for name in quantised}
    assert set(events["finished"]) == {"corpus", "vocabulary", "vocoder"} | models | quantised | scores
    assert "resumed" not in events
    assert "rebuilt" not in events
    assert list(found) == [Cell("max"), *CELLS[:2]]
    assert all(len(results) == 2 for results in found.values())
    perplexity = [one["scores"]["text_perplexity"] for results in found.values() for one in results]
    assert len(set(perplexity)) == len(perplexity)  # every cell and seed is a model of its own
    events.clear()
    assert measure(scale, reversed(CELLS), 2, (), in_turn(watcher)) == found
    assert set(events) == {"skipped"}
    run = open_run(scale, CELLS[0], 1)
    lora = json.loads((run.folder / "lora-8-s1-max" / "stage.json").read_text())["settings"]["adaptation"]
    assert (lora["lora"]["rank"], lora["lora"]["alpha"], lora["seed"], lora["steps"]) == (2, 2, 1, 3)


def test_the_command_shows_and_keeps_a_table(scale_file, capsys):
    assert main(["paper", "run", "7", "--scale", str(scale_file), "--seeds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Table 7, max-shift with the ordinary softmax; scale tiny, 2 seeds\n" in shown
    assert "34.4" in shown
    assert main(["paper", "run", "7", "--scale", str(scale_file), "--seeds", "2", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert {"table": "7", "scale": "tiny", "seeds": 2}.items() <= kept.items()
    assert {"command", "commit", "machine", "date"} <= set(kept["made"])
    assert kept == json.loads((Path(scale_file.parent) / "run" / "table-7.json").read_text())
    accuracy = kept["rows"][0]["measured"]["next_token_accuracy"]
    assert 0 <= accuracy["mean"] <= 100
    assert accuracy["deviation"] >= 0


def test_a_wrong_setting_is_said_before_anything_is_made(scale_file, tmp_path, capsys):
    assert main(["paper", "run", "1", "--scale", str(scale_file), "adaptation.stepz=1", f"output={tmp_path}"]) == 2
    assert "adaptation.stepz: unknown key" in capsys.readouterr().err
    assert main(["paper", "run", "12", "--scale", str(scale_file)]) == 2
    assert "table 12: cannot be measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_epochs_are_timed_on_the_same_batches_and_the_model_stays(scale_file, monkeypatch):
    monkeypatch.setattr("sparq.paper.epoch_time.STEPS", 3)
    run = open_run(load_scale(str(scale_file)), Cell("none"), 0)
    model = run.start("none")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    times = epoch_times(model, run.corpus, run.vocabulary, run.recipe, ("none", "zero"))
    assert [one.sink for one in times] == ["none", "zero"]
    assert times[0].ratio == 1
    assert all(one.seconds_per_step > 0 and one.minutes_per_epoch > 0 for one in times)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    kept = reproduce("3", Order(load_scale(str(scale_file))))
    assert [row["sink"] for row in kept["rows"]] == ["none", "max", "zero"]
    assert [row["value"] for row in kept["printed"]] == ["74", "58", "84", "63"]


def test_a_package_that_is_missing_is_said_before_anything_is_made(scale_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    cells = [Cell("max"), Cell("max", Adaptation("qlora"))]
    with pytest.raises(UserError, match="bitsandbytes"):
        measure(load_scale(str(scale_file)), cells, 1, (f"output={tmp_path}",), in_turn(Watcher()))
    assert not list(tmp_path.iterdir())


def test_ray_is_asked_for_only_when_it_is_wanted(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray: Ray is not installed"):
        on_ray("local", Watcher())


def test_a_cluster_gives_what_this_process_gives(scale_file, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    scale = load_scale(str(scale_file))
    notes: list[str] = []
    engine = on_ray("local", Watcher(note=notes.append))
    here = measure(scale, CELLS[:1], 1, (), in_turn(Watcher()))
    assert measure(scale, CELLS[:1], 1, (), engine) == here
    assert notes[-1] == "2 of 2 jobs"
    wrong = experiment.Job(scale, CELLS[0], 0, ("adaptation.stepz=1",), "shared")
    with pytest.raises(UserError, match="unknown key"):
        engine([wrong])


def test_figure_4_is_drawn_of_models_adapted_by_lora(scale_file, capsys):
    assert main(["paper", "run", "figure4", "--scale", str(scale_file), "adaptation.steps=1"]) == 0
    shown = capsys.readouterr().out
    assert "Figure 4, attention of the last layer; scale tiny, 1 seed" in shown
    folder = scale_file.parent / "run"
    assert (folder / "figure4.svg").stat().st_size > 10_000
    assert (folder / "figure4.png").read_bytes().startswith(b"\x89PNG")
    rows = {row["sink"]: row for row in json.loads((folder / "figure4.json").read_text())["rows"]}
    assert rows["none"]["withheld_attention"] == pytest.approx(0, abs=1e-5)
    assert 0 < rows["max"]["withheld_attention"] <= 0.5  # softmax(S) / (1 + p_max)
    assert 0 < rows["zero"]["withheld_attention"] < 1
    assert 0 < rows["none"]["first_token_attention"] < 1


def test_figure_3_has_bars_for_each_adaptation(scale_file, monkeypatch, capsys):
    """On results made up for it: QLoRA's package need not be there."""

    def made_up(_order, cells):
        report = {"maximum_infinity_norm": 9.0, "average_kurtosis": 4.0}
        return {cell: [{"outliers": {"text": report, "speech with text": report}}] for cell in cells}

    monkeypatch.setattr(Order, "measure", made_up)
    kept = reproduce("figure3", Order(load_scale(str(scale_file))))
    assert len(kept["rows"]) == 3 * 3 * 2
    names = {f"figure3-{way}{kind}" for way in ("full", "lora-256", "qlora8-256") for kind in (".svg", ".png")}
    assert names <= {path.name for path in (scale_file.parent / "run").iterdir()}
    assert main(["paper", "run", "figure3", "--scale", str(scale_file)]) == 0
    assert "qlora8-256  zero  speech with text                 9.0           4.00" in capsys.readouterr().out


def test_table_11_counts_without_training_where_nothing_was_made_yet(scale_file, tmp_path, capsys):
    folder = tmp_path / "runs" / "new"
    assert main(["paper", "run", "11", f"output={folder}", "--scale", str(scale_file), "--seeds", "3"]) == 0
    assert json.loads((folder / "table-11.json").read_text())["seeds"] == 1  # nothing is drawn
    assert (folder / "table-11.json").is_file()
    opt_125m = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("OPT-125m"))
    assert opt_125m.split() == ["OPT-125m", "9.4", "7.5", "42.5", "33.9", "9.4", "7.5"]


def test_jobs_travel(scale_file):
    import pickle

    job = experiment.Job(load_scale(str(scale_file)), CELLS[1], 0, (), "scored")
    assert dataclasses.asdict(pickle.loads(pickle.dumps(job))) == dataclasses.asdict(job)
