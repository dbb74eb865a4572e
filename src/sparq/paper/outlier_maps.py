"""Where the outliers of one model are: by layer and module, by layer and head, and how large they grow.

One row of panels for each kind of input, layers from top to bottom. The scales are those of all rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from sparq.evaluation.outliers import PARTS, OutlierReport, by_layer
from sparq.evaluation.sinks import MASSIVE_RATIO, SinkReport
from sparq.paper.drawing import Palette, page_svg, save_figure, short

_NUMBERED = 12  # layers up to which the cells of modules hold their numbers
_TITLES = ("Infinity norm", "Kurtosis", "Attention to the first token", "Largest / median")


@dataclasses.dataclass(frozen=True)
class Measured:
    """All that is measured of a model on one kind of input."""

    outliers: OutlierReport
    sinks: SinkReport


def outlier_maps(found: Mapping[str, Measured]) -> str:
    """Draw where a model's outliers are, by kind of input; SVG for a page."""
    return page_svg(lambda palette: _draw(found, palette), "maps")


def save_outlier_maps(found: Mapping[str, Measured], path: Path) -> None:
    """Draw where a model's outliers are, by kind of input, into a file, SVG or PNG by its ending.

    Raises:
        UserError: the file cannot be written.
    """
    save_figure(lambda palette: _draw(found, palette), path)


def _draw(found: Mapping[str, Measured], palette: Palette) -> Figure:
    layers = len(next(iter(found.values())).sinks.ratios)
    height = 1.3 + min(0.3, 5 / layers) * layers
    figure = Figure(figsize=(13, height * len(found) + 0.3), layout="constrained")
    grid = figure.subplots(len(found), 4, squeeze=False, width_ratios=(5, 5, 4, 2.6))
    tables: Any = [
        (by_layer(one.outliers.infinity_norms), by_layer(one.outliers.kurtoses), one.sinks.by_head)
        for one in found.values()
    ]
    scales = (*(_logarithmic([row[kind] for row in tables]) for kind in range(2)), Normalize(0, 1))
    largest = max(max(one.sinks.ratios) for one in found.values())
    for row, table, (kind, one) in zip(grid, tables, found.items(), strict=True):
        for axes, values, scale in zip(row[:2], table[:2], scales[:2], strict=True):
            _cells(axes, values, scale, numbered=layers <= _NUMBERED)
            axes.set_xticks(range(len(PARTS)), [part.replace(" ", "\n", 1) for part in PARTS], fontsize=8)
        bar = figure.colorbar(_cells(row[2], table[2], scales[2], numbered=False), ax=row[2], pad=0.02)
        _frame(bar, palette)
        row[2].set_xlabel("head", fontsize=8.5)
        row[2].set_xticks(range(len(table[2][0])), range(1, len(table[2][0]) + 1), fontsize=8)
        if len(table[2][0]) > _NUMBERED:
            row[2].set_xticks([0, len(table[2][0]) - 1], [1, len(table[2][0])], fontsize=8)
        _ratios(row[3], one.sinks.ratios, largest, palette)
        row[0].set_ylabel(f"{kind}\nlayer", fontweight="bold")
        for axes in row:
            axes.set_ylim(layers - 0.5, -0.5)
            axes.tick_params(length=0, labelsize=8)
            step = 1 if layers <= _NUMBERED else 5
            axes.set_yticks(range(0, layers, step), range(0, layers, step) if axes is row[0] else [])
    for axes, title in zip(grid[0], _TITLES, strict=True):
        axes.set_title(title)
    return figure


def _logarithmic(tables: Sequence[Any]) -> LogNorm:
    values = np.concatenate([np.ravel(table) for table in tables])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 10.0)
    return LogNorm(low, max(high, 1.01 * low))


def _cells(axes: Axes, values: Any, scale: Normalize, *, numbered: bool) -> Any:
    image = axes.imshow(np.asarray(values), norm=scale, cmap="magma", aspect="auto", interpolation="none")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.6)
    if numbered:
        for (layer, part), value in np.ndenumerate(np.asarray(values)):
            light = float(np.dot(colormaps["magma"](scale(value))[:3], (0.3, 0.59, 0.11)))
            colour = "#000000" if light > 0.55 else "#ffffff"
            axes.text(part, layer, short(value), ha="center", va="center", fontsize=8, color=colour)
    return image


def _ratios(axes: Axes, ratios: Sequence[float], largest: float, palette: Palette) -> None:
    """Draw bars, and where an activation begins to count as massive."""
    axes.barh(range(len(ratios)), ratios, 0.7, color=palette.ink, alpha=0.45)
    axes.set_xscale("log")
    axes.set_xlim(1, 2.5 * max(largest, 10.0))
    if largest > MASSIVE_RATIO / 10:
        axes.axvline(MASSIVE_RATIO, color=palette.ink, lw=0.9, ls=(0, (3, 2)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f"))
    axes.grid(visible=False, axis="y")
    axes.minorticks_off()


def _frame(bar: Any, palette: Palette) -> None:
    bar.ax.grid(visible=False)
    bar.ax.tick_params(labelsize=7.5, length=2)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    bar.outline.set(linewidth=0.6, edgecolor=palette.ink)
    bar.solids.set_rasterized(True)
