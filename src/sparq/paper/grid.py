"""The paper's tables as grids: which models each of them compares, and what is printed of them.

A row of a table becomes a line for each reading of its attention: "sparq" is measured as max-shift, read literally, and
as softmax_1 with a sink of zero (see ``attention/softmax.py``). Lines of different tables that are about the same model
have the same cell, so that it is made and scored once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sparq.config import QuantizationRow
from sparq.paper.printed import Printed, Setting, other_table, scores_table
from sparq.paper.scale import FULL, Adaptation

READINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"vanilla": ("none",), "sparq": ("max", "zero"), "clipped_softmax": ("clipped",), "gated_attention": ("gated",)}
)
"""Attention of a printed row → the sinks that it is measured with."""

SCORED = ("1", "2", "6", "8", "9", "10", "G.1")
BY_ACCURACY = ("4", "5", "7")

# Max-shift in front of the ordinary softmax changes nothing, so it is measured as that, over again.
_STABILISERS = MappingProxyType({
    ("sparq", "none"): "zero", ("sparq", "l1"): "l1",
    ("sparq", "max_shift"): "max", ("sparq", "mean_centering"): "mean",
    ("vanilla", "none"): "none", ("vanilla", "max_shift"): "none",
})  # fmt: skip
_METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "smoothquant": {"method": "smoothquant"},
        "omniquant": {"method": "omniquant"},
        "affinequant": {"method": "affinequant"},
        "smoothquant+clip1": {"method": "smoothquant", "weight_clip_percent": 1.0},
        "smoothquant+clip5": {"method": "smoothquant", "weight_clip_percent": 5.0},
    }
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model: its attention, how it is adapted, and how it is quantised after that.

    Attributes:
        sink: one of ``sparq.config.SINKS``.
        adaptation: method, rank and bits.
        row: the post-training quantisation; None for none.
    """

    sink: str
    adaptation: Adaptation = FULL
    row: QuantizationRow | None = None

    @property
    def baseline(self) -> Cell:
        """What the average drop is relative to: the same attention, fully fine-tuned and not quantised."""
        return Cell(self.sink)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        attention: as the paper names it ("vanilla", "sparq", "clipped_softmax", "gated_attention").
        setting: what it is of, such as "full, smoothquant" or "lora, rank 512".
        bits: of the quantisation, or of the base under QLoRA ("W16A16", "W8A8", "W4A4").
        cell: the model to measure.
        printed: the paper's model → its row (a table of scores), or its number as printed (accuracy in percent).
    """

    attention: str
    setting: str
    bits: str
    cell: Cell
    printed: Mapping[str, Printed | str]


def lines(table: str, quantization: QuantizationRow) -> list[Line]:
    """Give the lines of a table of scores, or of accuracies.

    Args:
        table: one of ``SCORED`` or ``BY_ACCURACY``.
        quantization: what the quantisation methods are given, besides their names and widths.

    Raises:
        UserError: there is no such table.
    """
    return _accuracy_lines(table) if table in BY_ACCURACY else _score_lines(table, quantization)


def _score_lines(table: str, quantization: QuantizationRow) -> list[Line]:
    found: dict[tuple[str, Cell], Line] = {}
    for printed in scores_table(table):
        setting = printed.setting
        for sink in READINGS[setting.attention]:
            cell = Cell(sink, _adaptation(setting), _row(setting, quantization))
            known = found.get((setting.attention, cell))
            rows = {**(known.printed if known else {}), setting.model: printed}
            name = setting.adaptation + ("" if setting.quantisation == "none" else f", {setting.quantisation}")
            found[setting.attention, cell] = Line(setting.attention, name, setting.bits, cell, rows)
    return list(found.values())


def _adaptation(setting: Setting) -> Adaptation:
    if setting.adaptation == "qlora":  # Table 10: the widths are those of the base (its row at 8 bits is Table 2's)
        return Adaptation("qlora", bits=int(setting.bits[1]))
    return {
        "full": FULL,
        "lora": Adaptation("lora"),
        "qlora-int8": Adaptation("qlora", bits=8),
    }[setting.adaptation]


def _row(setting: Setting, quantization: QuantizationRow) -> QuantizationRow | None:
    if setting.quantisation == "none":
        return None
    bits = int(setting.bits[1])
    method = _METHODS[setting.quantisation]
    return dataclasses.replace(quantization, weight_bits=bits, activation_bits=bits, **method)


def _accuracy_lines(table: str) -> list[Line]:
    found = []
    for other in other_table(table):
        kind, _, value = other.setting.partition("=")
        if kind == "stabilizer":
            cells = [Cell(_STABILISERS[other.attention, value])]
        else:
            adaptation = Adaptation("lora", int(value)) if kind == "lora rank" else FULL
            cells = [Cell(sink, adaptation) for sink in READINGS[other.attention]]
        printed = {other.model: other.value}
        found += [Line(other.attention, other.setting, "W16A16", cell, printed) for cell in cells]
    return found
