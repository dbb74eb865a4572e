"""The figures of a report: SVG that takes its colours, its ink and its type from the page it is put into.

Colours are Okabe and Ito's, which the colour-blind tell apart; line styles, hatches and labels say the same again.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LABELS = MappingProxyType(
    {
        "none": "vanilla",
        "max": "max shift",
        "zero": "zero sink",
        "mean": "mean shift",
        "l1": "L1 norm",
        "learned": "learned sink",
        "clipped": "clipped softmax",
        "gated": "gated attention",
    }
)
_LINES = {
    "none": "-",
    "max": "--",
    "zero": "-.",
    "mean": ":",
    "l1": (0, (1, 3)),
    "learned": (0, (5, 1, 1, 1, 1, 1)),
    "clipped": (0, (8, 2, 2, 2)),
    "gated": (0, (2, 2)),
}
_HATCHES = {
    "none": "",
    "max": "//",
    "zero": "..",
    "mean": "\\\\",
    "l1": "--",
    "learned": "xx",
    "clipped": "++",
    "gated": "oo",
}
# Matplotlib wants colours: each of these stands for a CSS variable of the page, and is replaced by it at the end.
_STAND_INS = {"ink": "#010203", "grid": "#010204", "paper": "#010205"} | {
    f"sink-{sink}": f"#0102{16 + i:02x}" for i, sink in enumerate(LABELS)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "hatch.linewidth": 0.8,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.linewidth": 0.8,
    "grid.color": _STAND_INS["grid"],
    "axes.edgecolor": _STAND_INS["ink"],
    "axes.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), _STAND_INS["ink"]
    ),
}
_BARS_SPAN = 12.0  # beyond this ratio of the largest to the smallest bar, the axis is logarithmic


@dataclasses.dataclass(frozen=True)
class LossCurve:
    """The loss of one attention variant as it was adapted.

    Attributes:
        sink: the variant.
        steps: optimizer steps, rising.
        losses: mean cross-entropy over the target pieces since the step before, in nats.
    """

    sink: str
    steps: Sequence[float]
    losses: Sequence[float]


@dataclasses.dataclass(frozen=True)
class OutlierBar:
    """The outliers of one attention variant on one kind of input (paper, Figure 3).

    Attributes:
        sink: the variant.
        modality: "text", "speech" or "speech with text".
        maximum_infinity_norm: largest over the modules.
        average_kurtosis: mean over the modules; 3 for normally distributed values.
    """

    sink: str
    modality: str
    maximum_infinity_norm: float
    average_kurtosis: float


def label(sink: str) -> str:
    """Name an attention variant as tables and figures do."""
    return LABELS.get(sink, sink)


def loss_curves(curves: Sequence[LossCurve]) -> str:
    """Draw the training loss of each variant over its steps; SVG text."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            colour = _colour(curve.sink)
            line = _LINES.get(curve.sink, "-")
            axes.plot(curve.steps, curve.losses, ls=line, color=colour, lw=2, label=label(curve.sink))
            axes.plot(curve.steps[-1:], curve.losses[-1:], "o", color=colour, ms=5)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss (nats per piece)")
        axes.margins(x=0.02)
        axes.legend(frameon=False, loc="upper right", handlelength=3.2)
        return _svg(figure, "loss")


def outlier_bars(bars: Sequence[OutlierBar]) -> str:
    """Draw kurtosis and infinity norm, a group of bars for each kind of input, in the form of Figure 3; SVG text."""
    panels = {"Average kurtosis": "average_kurtosis", "Maximum infinity norm": "maximum_infinity_norm"}
    modalities = list(dict.fromkeys(bar.modality for bar in bars))
    sinks = list(dict.fromkeys(bar.sink for bar in bars))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3.9), layout="constrained")
        for axes, (title, field) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            values = {(bar.modality, bar.sink): float(getattr(bar, field)) for bar in bars}
            _grouped(axes, values, modalities, sinks)
            axes.set_title(title)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(sinks), handlelength=2.4)
        return _svg(figure, "outliers")


def _grouped(axes: Axes, values: dict[tuple[str, str], float], groups: Sequence[str], sinks: Sequence[str]) -> None:
    """Draw one panel: a group of bars for each modality, a bar for each variant, its value above it."""
    width = 0.84 / len(sinks)
    shown = [value for value in values.values() if math.isfinite(value) and value > 0]
    if shown and max(shown) > _BARS_SPAN * min(shown):
        axes.set_yscale("log")
        axes.set_ylim(10 ** math.floor(math.log10(min(shown)) - 0.05), max(shown) * 2.2)
        axes.set_ylabel("logarithmic scale")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for i, sink in enumerate(sinks):
        found = [values.get((group, sink), math.nan) for group in groups]
        heights = [value if math.isfinite(value) else 0.0 for value in found]
        places = [g + (i - (len(sinks) - 1) / 2) * width for g in range(len(groups))]
        bars = axes.bar(
            places,
            heights,
            width * 0.9,
            color=_colour(sink),
            hatch=_HATCHES.get(sink, ""),
            edgecolor=_STAND_INS["paper"],
            linewidth=0,
            label=label(sink),
        )
        axes.bar_label(bars, [short(value) for value in found], padding=2, fontsize=8.5)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.minorticks_off()
    axes.margins(y=0.12)


def short(value: float) -> str:
    """Write a number with three figures, and thousands set apart."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def _colour(sink: str) -> str:
    return _STAND_INS.get(f"sink-{sink}", _STAND_INS["ink"])


def _svg(figure: Figure, name: str) -> str:
    """Write a figure as an SVG element for the inside of a page: its ids its own, its colours the page's."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)[ >].*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--type)", text)
    for variable, stand_in in _STAND_INS.items():
        text = text.replace(stand_in, f"var(--{variable})")
    return text
