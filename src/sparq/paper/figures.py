"""The charts of a report: the loss and the outliers of each attention variant, as it trains and when it is done."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparq.paper.drawing import Palette, label, page_svg, save_figure, short

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
_SPAN = 12.0  # beyond this ratio of the largest to the smallest value, an axis is logarithmic
LIVE_PANELS = {
    "maximum_infinity_norm": "Maximum infinity norm",
    "average_kurtosis": "Average kurtosis",
    "first_token_attention": "Attention to the first token",
    "massive_activation_ratio": "Largest activation / median",
}
"""What is logged of the outliers as a model trains → the title of its panel."""


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
class OutlierCurve:
    """The outliers of one attention variant as it was adapted, on one kind of input.

    Attributes:
        sink: the variant.
        steps: optimizer steps, rising, at which they were measured.
        values: one of ``LIVE_PANELS`` → its value at each step.
    """

    sink: str
    steps: Sequence[float]
    values: Mapping[str, Sequence[float]]


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


def loss_curves(curves: Sequence[LossCurve]) -> str:
    """Draw the training loss of each variant over its steps; SVG for a page."""

    def draw(palette: Palette) -> Figure:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            _curve(axes, palette, curve.sink, curve.steps, curve.losses)
            axes.plot(curve.steps[-1:], curve.losses[-1:], "o", color=palette.sink(curve.sink), ms=5)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss (nats per piece)")
        axes.margins(x=0.02)
        axes.legend(frameon=False, loc="upper right", handlelength=3.2)
        return figure

    return page_svg(draw, "loss")


def outlier_curves(curves: Sequence[OutlierCurve]) -> str:
    """Draw the outliers of each variant over its steps, a panel for each measure; SVG for a page."""

    def draw(palette: Palette) -> Figure:
        figure = Figure(figsize=(9, 4.8), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        for axes, (name, title) in zip(panels.flat, LIVE_PANELS.items(), strict=True):
            for curve in curves:
                _curve(axes, palette, curve.sink, curve.steps, curve.values[name], marker="o", ms=4)
            found = [value for curve in curves for value in curve.values[name]]
            if name == "first_token_attention":
                axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            elif not _logarithmic(axes, found):
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}".replace(",", "\u202f"))
            axes.set_title(title)
            axes.margins(x=0.03, y=0.12)
        for axes in panels[-1]:
            axes.set_xlabel("optimizer step")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(curves), handlelength=3.2)
        return figure

    return page_svg(draw, "live")


def outlier_bars(bars: Sequence[OutlierBar]) -> str:
    """Draw kurtosis and infinity norm, a group of bars for each kind of input, as Figure 3 does; SVG for a page."""
    return page_svg(lambda palette: _bars(bars, palette), "outliers")


def save_outlier_bars(bars: Sequence[OutlierBar], path: Path) -> None:
    """Draw what :func:`outlier_bars` draws into a file, SVG or PNG by its ending.

    Raises:
        UserError: the file cannot be written.
    """
    save_figure(lambda palette: _bars(bars, palette), path)


def _bars(bars: Sequence[OutlierBar], palette: Palette) -> Figure:
    panels = {"Average kurtosis": "average_kurtosis", "Maximum infinity norm": "maximum_infinity_norm"}
    modalities = list(dict.fromkeys(bar.modality for bar in bars))
    sinks = list(dict.fromkeys(bar.sink for bar in bars))
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    for axes, (title, field) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        values = {(bar.modality, bar.sink): float(getattr(bar, field)) for bar in bars}
        _grouped(axes, palette, values, modalities, sinks)
        axes.set_title(title)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(sinks), handlelength=2.4)
    return figure


def _curve(
    axes: Axes, palette: Palette, sink: str, steps: Sequence[float], values: Sequence[float], **marks: object
) -> None:
    line = _LINES.get(sink, "-")
    axes.plot(steps, values, ls=line, color=palette.sink(sink), lw=2, label=label(sink), **marks)  # type: ignore[arg-type]


def _logarithmic(axes: Axes, values: Sequence[float]) -> bool:
    """Make an axis logarithmic if its values lie so far apart."""
    shown = [value for value in values if math.isfinite(value) and value > 0]
    if not shown or max(shown) <= _SPAN * min(shown):
        return False
    axes.set_yscale("log")
    axes.set_ylim(10 ** math.floor(math.log10(min(shown)) - 0.05), max(shown) * 2.2)
    axes.set_ylabel("logarithmic scale")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return True


def _grouped(
    axes: Axes, palette: Palette, values: dict[tuple[str, str], float], groups: Sequence[str], sinks: Sequence[str]
) -> None:
    """Draw one panel: a group of bars for each modality, a bar for each variant, its value above it."""
    width = 0.84 / len(sinks)
    _logarithmic(axes, list(values.values()))
    for i, sink in enumerate(sinks):
        found = [values.get((group, sink), math.nan) for group in groups]
        heights = [value if math.isfinite(value) else 0.0 for value in found]
        places = [g + (i - (len(sinks) - 1) / 2) * width for g in range(len(groups))]
        bars = axes.bar(
            places,
            heights,
            width * 0.9,
            color=palette.sink(sink),
            hatch=_HATCHES.get(sink, ""),
            edgecolor=palette.paper,
            linewidth=0,
            label=label(sink),
        )
        axes.bar_label(bars, [short(value) for value in found], padding=2, fontsize=8.5)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.minorticks_off()
    axes.margins(y=0.12)
