"""The paper by one command: each table and figure measured at a scale, and kept as JSON beside what is printed."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparq.artifacts import provenance, write_text
from sparq.errors import UserError
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS
from sparq.making import SPEECHLM, Watcher
from sparq.paper.adapter_share import table_11
from sparq.paper.comparison import Value, as_data, compare
from sparq.paper.epoch_time import epoch_times
from sparq.paper.experiment import Engine, Job, adapt, in_turn, measure, open_run
from sparq.paper.figures import OutlierBar, save_outlier_bars
from sparq.paper.grid import BY_ACCURACY, READINGS, SCORED, Cell, lines
from sparq.paper.heatmaps import draw_heatmaps
from sparq.paper.printed import other_table
from sparq.paper.scale import FULL, Adaptation, Scale
from sparq.schema import did_you_mean

FIGURES = {"figure3": "Figure 3, outliers", "figure4": "Figure 4, attention of the last layer"}
TABLES = ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "G.1", *FIGURES)
PICTURES = (".svg", ".png")
_COMPARED = (*READINGS["vanilla"], *READINGS["sparq"])


@dataclasses.dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        scale: at which size.
        seeds: how many; numbers become mean and deviation over them. Tables 3 and 11 and figure 4 take one.
        overrides: ``key=value`` settings of every model.
        watcher: told how it goes.
        engine: does the jobs; None for one after another, here.
    """

    scale: Scale
    seeds: int = 1
    overrides: tuple[str, ...] = ()
    watcher: Watcher = dataclasses.field(default_factory=Watcher)
    engine: Engine | None = None

    def measure(self, cells: Sequence[Cell]) -> dict[Cell, list[Mapping[str, Any]]]:
        """Adapt, quantise and score cells."""
        return measure(self.scale, cells, self.seeds, self.overrides, self.do)

    def do(self, jobs: Sequence[Job]) -> list[Mapping[str, Any] | None]:
        """Do jobs that do not wait for each other."""
        return (self.engine or in_turn(self.watcher))(jobs)


def reproduce(table: str, order: Order) -> dict[str, Any]:
    """Measure a table or a figure, and keep it as ``runs/paper-SCALE/TABLE.json``.

    Args:
        table: one of ``TABLES``.
        order: scale, seeds and the rest.

    Returns:
        What is kept: plain data, laid out by :mod:`sparq.paper.layout`.

    Raises:
        UserError: there is no such table, a setting is wrong, or a part cannot be had.
    """
    if table not in TABLES:
        raise UserError(f"table {table}: cannot be measured ({did_you_mean(table, TABLES)})")
    folder = order.scale.cell(FULL, 0, order.overrides).folder
    kept = {
        "table": table,
        "scale": order.scale.name,
        "description": order.scale.description,
        "stands_for": order.scale.stands_for,
        "seeds": order.seeds,
        "settings": list(order.overrides),
        **_MEASURED[table](table, order),
        "made": provenance(),
    }
    folder.mkdir(parents=True, exist_ok=True)  # tables without models have made no stage in it
    write_text(folder / f"{_file(table)}.json", json.dumps(kept, indent=1) + "\n")
    return kept


def _file(table: str) -> str:
    return table if table in FIGURES else f"table-{table}"


def _scored(table: str, order: Order) -> dict[str, Any]:
    asked = lines(table, order.scale.quantization)
    measured = order.measure([line.cell for line in asked])
    return {"rows": [as_data(row) for row in compare(asked, measured)]}


def _epochs(table: str, order: Order) -> dict[str, Any]:
    run = open_run(order.scale, Cell("none"), 0, order.overrides, order.watcher)
    run.check()
    times = epoch_times(run.start("none"), run.corpus, run.vocabulary, run.recipe, _COMPARED, order.watcher.note)
    return {
        "seeds": 1,
        "rows": [dataclasses.asdict(one) for one in times],
        "printed": [dataclasses.asdict(one) for one in other_table(table)],
    }


def _outliers(table: str, order: Order) -> dict[str, Any]:
    adaptations = (FULL, Adaptation("lora"), Adaptation("qlora"))
    cells = [Cell(sink, adaptation) for adaptation in adaptations for sink in _COMPARED]
    measured = order.measure(cells)
    rows = []
    for cell in cells:
        for kind in measured[cell][0]["outliers"]:
            reports = [one["outliers"][kind] for one in measured[cell]]
            values = {
                name: dataclasses.asdict(Value.over([report[name] for report in reports]))
                for name in ("maximum_infinity_norm", "average_kurtosis")
            }
            rows.append({"adaptation": cell.adaptation.name, "sink": cell.sink, "kind": kind, **values})
    folder = order.scale.cell(FULL, 0, order.overrides).folder
    for adaptation, kind in itertools.product(adaptations, PICTURES):
        bars = [
            OutlierBar(row["sink"], row["kind"], row["maximum_infinity_norm"]["mean"], row["average_kurtosis"]["mean"])
            for row in rows
            if row["adaptation"] == adaptation.name
        ]
        save_outlier_bars(bars, folder / f"{table}-{adaptation.name}{kind}")
    return {"title": FIGURES[table], "rows": rows}


def _heads(table: str, order: Order) -> dict[str, Any]:
    """Figure 4 shows models fine-tuned by LoRA; every sink of ours reads the first held-out sentence."""
    cells = [Cell(sink, Adaptation("lora")) for sink in _COMPARED]
    adapt(order.scale, cells, 1, order.overrides, order.do)
    run = open_run(order.scale, cells[0], 0, order.overrides, order.watcher)
    models = {cell.sink: SpeechLM.load(run.folder / run.name(cell.sink) / SPEECHLM) for cell in cells}
    sample = next(u for u in run.corpus.utterances("held_out") if u.serves(TASKS["asr"]))
    for kind in PICTURES:
        maps = draw_heatmaps(models, sample, run.folder / f"{table}{kind}")
    rows = [
        {
            "sink": one.sink,
            "layer": one.layer,
            "first_token_attention": float(one.probabilities[:, 1:, 0].mean()),
            "withheld_attention": float(1 - one.probabilities.sum(-1).mean()),
            "largest_value": float(np.abs(one.values).max()),
            "largest_weighted_value": float(np.abs(one.weighted).max()),
        }
        for one in maps
    ]
    return {"seeds": 1, "title": FIGURES[table], "sentence": sample.text, "rows": rows}


def _adapter_shares(_table: str, _order: Order) -> dict[str, Any]:
    return {"seeds": 1, "rows": [dataclasses.asdict(row) for row in table_11()]}


_MEASURED: Mapping[str, Callable[[str, Order], dict[str, Any]]] = {
    **dict.fromkeys((*SCORED, *BY_ACCURACY), _scored),
    "3": _epochs,
    "11": _adapter_shares,
    "figure3": _outliers,
    "figure4": _heads,
}
