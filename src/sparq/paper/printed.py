"""The paper's tables as data: what is printed, and whether its average drops follow from their own rows.

Nothing here was measured by SpARQ. A printed drop *follows* when some scores that round to the printed ones give a drop
that rounds to it (:func:`sparq.evaluation.degradation.average_drop`). Baselines, where a table does not hold them, are
the fully fine-tuned rows of Table 1; those of clipped softmax and gated attention are printed nowhere.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from pathlib import Path

from sparq.errors import UserError
from sparq.evaluation.degradation import Scores, average_drop
from sparq.schema import did_you_mean

FOLDER = Path(__file__).parent / "printed"
TITLES = {
    "1": "post-training quantisation, W4A4",
    "2": "low-rank adaptation",
    "3": "training time",
    "4": "stabilisers with softmax_1",
    "5": "ranks of LoRA",
    "6": "post-training quantisation, W8A8 and W4A4",
    "7": "max-shift with the ordinary softmax",
    "8": "LoRA, then post-training quantisation",
    "9": "weight clipping",
    "10": "QLoRA at lower bits",
    "11": "parameters of LoRA",
    "G.1": "other outlier-free attention",
}
_HALF = 0.005  # scores and drops are printed to two places


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a row of scores is of.

    Attributes:
        model: "OPT-125m", "OPT-350m" or "OPT-1.3b".
        attention: "vanilla", "sparq", "clipped_softmax" or "gated_attention".
        adaptation: "full", "lora", "qlora-int8" or "qlora".
        quantisation: "none", "smoothquant", "affinequant", "omniquant", or SmoothQuant with clipped weights.
        bits: "W16A16", "W8A8" or "W4A4".
    """

    model: str
    attention: str
    adaptation: str
    quantisation: str
    bits: str


@dataclasses.dataclass(frozen=True)
class Printed:
    """A row of scores as it is printed.

    Attributes:
        setting: what it is of.
        scores: the four scores.
        drop: the printed average drop in percent; None for a baseline.
        baseline: the scores that the drop is relative to; None for a baseline, or where they are printed nowhere.
    """

    setting: Setting
    scores: Scores
    drop: float | None
    baseline: Scores | None

    @property
    def recomputed(self) -> float | None:
        """The average drop by the paper's definition, in percent."""
        return None if self.baseline is None else average_drop(self.baseline, self.scores)

    @property
    def follows(self) -> bool | None:
        """Whether the printed drop follows from the printed scores, up to rounding; None where nothing can be said."""
        if self.drop is None or self.baseline is None:
            return None
        low = average_drop(_moved(self.baseline, _HALF), _moved(self.scores, -_HALF))
        high = average_drop(_moved(self.baseline, -_HALF), _moved(self.scores, _HALF))
        return low - _HALF <= self.drop <= high + _HALF


@dataclasses.dataclass(frozen=True)
class Other:
    """A number of a table that has no four scores.

    Attributes:
        model, attention, setting, metric: what it is of.
        value: as printed; "NaN loss" where the training diverged.
    """

    model: str
    attention: str
    setting: str
    metric: str
    value: str


@dataclasses.dataclass(frozen=True)
class Improvement:
    """How much better SpARQ does than the ordinary attention in one setting, in percent of the latter; two ways.

    Attributes:
        setting: of SpARQ's row.
        of_drops: 1 − drop / drop, from the recomputed drops: each attention against its own baseline. It is what the
            paper calls relative improvement.
        of_scores: mean over the four of 1 − score / score: what a user of the quantised model sees.
    """

    setting: Setting
    of_drops: float
    of_scores: float


def scores_table(name: str) -> list[Printed]:
    """Give the rows of a table of scores: 1, 2, 6, 8, 9, 10 or G.1.

    Raises:
        UserError: there is no such table, or it has no scores.
    """
    _check(name)
    rows = [row for row in _score_lines() if name in row["table"].split(",")]
    if not rows:
        raise UserError(f"table {name}: has no scores of the four tasks")
    baselines = _baselines(name) or _baselines("1")
    found = []
    for row in rows:
        drop = float(row["printed_average_drop_percent"]) if row["printed_average_drop_percent"] else None
        # The drops of OPT-350m in the appendix are relative to Table 1's models.
        base = None if drop is None else baselines.get((row["model"], row["attention"]))
        found.append(Printed(_setting(row), _scores(row), drop, base))
    return found


def other_table(name: str) -> list[Other]:
    """Give the numbers of a table without scores: 3, 4, 5, 7 or 11; none for the others.

    Raises:
        UserError: there is no such table.
    """
    _check(name)
    with (FOLDER / "others.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("table") == name]
    return [Other(**row) for row in rows]


def improvements(rows: list[Printed]) -> list[Improvement]:
    """Compare SpARQ's rows with those of the ordinary attention in the same settings, where drops have a baseline."""
    vanilla = {row.setting: row for row in rows if row.setting.attention == "vanilla"}
    found = []
    for row in rows:
        other = vanilla.get(dataclasses.replace(row.setting, attention="vanilla"))
        if row.setting.attention != "sparq" or other is None:
            continue
        of_drops = drop_improvement(row.recomputed, other.recomputed)
        of_scores = score_improvement(row.scores, other.scores)
        if of_drops is not None and of_scores is not None:
            found.append(Improvement(row.setting, of_drops, of_scores))
    return found


def drop_improvement(ours: float | None, theirs: float | None) -> float | None:
    """How much smaller a drop is than another, in percent of it; None where one is missing or theirs is not above 0."""
    if ours is None or theirs is None or theirs <= 0:
        return None
    return 100 * (1 - ours / theirs)


def score_improvement(ours: Scores, theirs: Scores) -> float | None:
    """How much lower scores are than others, in percent, mean over the four; None where one of theirs is 0."""
    pairs = list(zip(dataclasses.astuple(ours), dataclasses.astuple(theirs), strict=True))
    if any(their <= 0 for _, their in pairs):
        return None
    return 100 * math.fsum(1 - our / their for our, their in pairs) / len(pairs)


def _check(name: str) -> None:
    if name not in TITLES:
        raise UserError(f"table {name}: the paper has none of this name ({did_you_mean(name, list(TITLES))})")


@functools.cache
def _score_lines() -> list[dict[str, str]]:
    with (FOLDER / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _setting(row: dict[str, str]) -> Setting:
    return Setting(row["model"], row["attention"], row["adaptation"], row["ptq"], row["bits"])


def _scores(row: dict[str, str]) -> Scores:
    return Scores(*(float(row[name]) for name in ("text_ppl", "speech_ppl", "asr_wer", "tts_wer")))


def _baselines(table: str) -> dict[tuple[str, str], Scores]:
    """Scores of the fully fine-tuned, unquantised models of a table by model and attention."""
    return {
        (row["model"], row["attention"]): _scores(row)
        for row in _score_lines()
        if table in row["table"].split(",") and (row["adaptation"], row["bits"]) == ("full", "W16A16")
    }


def _moved(scores: Scores, by: float) -> Scores:
    return Scores(*(value + by for value in dataclasses.astuple(scores)))
