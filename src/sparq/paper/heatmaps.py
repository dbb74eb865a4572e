"""Figure 4: attention probability, value and weighted value of the heads of the last layer, on one speech sample.

Each row is a head, each block of three columns a model. Of the block,

1. *probability* is p [length, length], a row for each token that asks, what comes later left blank;
2. *value* is v [length, head_dim];
3. *weighted value* is p·v [length, head_dim], times the gate where heads have one: what the head adds.

One scale for each of the three serves all models and heads, so that colours can be compared. The paper scales its
heatmaps from 0 to 1, which hides how large anything is, and the signs. Probabilities are small but for a few: they are
coloured by their square root, so that both are seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure

from sparq.attention.observe import Observation, observed
from sparq.corpus.utterance import Utterance
from sparq.evaluation.scoring import task_examples
from sparq.language.speech_lm import SpeechLM
from sparq.language.vocabulary import Modality
from sparq.paper.drawing import Palette, label, page_svg, save_figure
from sparq.quantization.calibration import evaluating, model_inputs

HEADS = 3  # drawn of a layer
KINDS = ("probability", "value", "weighted")
_BOUNDARY = "#8a8f98"  # seen on dark and light alike


@dataclasses.dataclass(frozen=True)
class HeadMaps:
    """The last layer of one model on one sequence.

    Attributes:
        sink: the attention variant.
        layer: which, from 0.
        probabilities: [heads, length, length].
        values: [heads, length, head_dim].
        weighted: [heads, length, head_dim].
        text_from: the token at which the text of the sequence begins, behind its speech.
    """

    sink: str
    layer: int
    probabilities: np.ndarray
    values: np.ndarray
    weighted: np.ndarray
    text_from: int


def head_maps(sink: str, lm: SpeechLM, utterance: Utterance) -> HeadMaps:
    """Look at the last layer of a model as it reads speech and then its text (an ASR sequence).

    Args:
        sink: how the model is called.
        lm: the model; it is afterwards what it was.
        utterance: with units and text.

    Raises:
        UserError: the utterance has no speech or no text.
    """
    (sequence,) = task_examples(lm.vocabulary, [utterance], "asr")
    last: list[Observation] = []

    def see(seen: Observation) -> None:
        last[:] = [seen]

    ids = torch.tensor([sequence.input_ids])
    with evaluating(lm.model), observed(lm.model, see):
        lm.model(**model_inputs(lm.model, {"input_ids": ids}), use_cache=False)
    (seen,) = last
    speech = np.flatnonzero(lm.vocabulary.modality[sequence.input_ids] == Modality.SPEECH)
    probabilities, values, weighted = (
        states[0].float().cpu().numpy() for states in (seen.probabilities, seen.values, seen.weighted)
    )
    return HeadMaps(sink, seen.layer, probabilities, values, weighted, text_from=int(speech[-1]) + 1)


def draw_heatmaps(
    models: Mapping[str, SpeechLM], utterance: Utterance, path: Path, heads: Sequence[int] | None = None
) -> list[HeadMaps]:
    """Draw Figure 4 into a file, SVG or PNG by its ending.

    Args:
        models: attention variant → model, the vanilla one first.
        utterance: the speech sample, with its text.
        path: the file.
        heads: which heads; see :func:`strongest_heads` for those that are drawn if None.

    Returns:
        What was drawn.

    Raises:
        UserError: the utterance has no speech or no text, or the file cannot be written.
    """
    maps = [head_maps(sink, lm, utterance) for sink, lm in models.items()]
    save_figure(lambda palette: _draw(maps, heads, palette), Path(path))
    return maps


def heatmaps(maps: Sequence[HeadMaps], heads: Sequence[int] | None = None) -> str:
    """Draw what :func:`draw_heatmaps` draws; SVG for a page."""
    return page_svg(lambda palette: _draw(maps, heads, palette), "heads")


def strongest_heads(maps: HeadMaps, count: int = HEADS) -> list[int]:
    """The heads that attend most to the first token (the mean over all later ones), the strongest first."""
    to_first = maps.probabilities[:, 1:, 0].mean(1)
    return [int(head) for head in np.argsort(-to_first, kind="stable")[:count]]


def _draw(maps: Sequence[HeadMaps], heads: Sequence[int] | None, palette: Palette) -> Figure:
    chosen = strongest_heads(maps[0]) if heads is None else list(heads)
    height = 1.9 * len(chosen) + 0.75
    figure = Figure(figsize=(1 + 3.6 * len(maps), height + 0.7), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(height, 0.7))
    above, below = parts
    # The narrow columns stand between the models.
    grid = above.subplots(
        len(chosen), 4 * len(maps) - 1, squeeze=False, width_ratios=[*[2, 1, 1, 0.12] * (len(maps) - 1), 2, 1, 1]
    )
    for axes in grid[:, 3::4].flat:
        axes.set_axis_off()
    scales = (PowerNorm(0.5, 0, 1), *(_around_zero(maps, chosen, name) for name in ("values", "weighted")))
    for index, one in enumerate(maps):
        block = grid[:, 4 * index : 4 * index + 3]
        for axes, kind in zip(block[0], KINDS, strict=True):
            axes.set_title(kind, fontsize=9, fontweight="normal")
        name = label(one.sink)
        block[0, 0].annotate(
            name,
            (0, 1),
            (0, 22),
            "axes fraction",
            "offset points",
            weight="bold",
            size=12,
            color=palette.sink(one.sink),
        )
        for row, head in zip(block, chosen, strict=True):
            _head(row, one, head, scales)
        _tick(block[-1, 0].set_xticks, one)
        block[-1, 0].tick_params(length=0, labelsize=8)
        block[-1, 0].set_xlabel("token attended to", fontsize=8.5)
        for axes in block[-1, 1:]:
            axes.set_xlabel("channel", fontsize=8.5)
    for axes, head in zip(grid[:, 0], chosen, strict=True):
        _tick(axes.set_yticks, maps[0], rotation=90, va="center")
        axes.tick_params(length=0, labelsize=8)
        axes.set_ylabel(f"head {head + 1}", fontweight="bold")
    for axes, kind, scale, colours in zip(below.subplots(1, 3), KINDS, scales, _colour_maps(), strict=True):
        _colour_bar(axes, kind, scale, colours, palette)
    return figure


def _colour_maps() -> tuple[Colormap, Colormap, Colormap]:
    """Few levels, which the eye hardly sees and the size of the file does."""
    signed = colormaps["RdBu_r"].resampled(33)
    return colormaps["magma"].resampled(48), signed, signed


def _around_zero(maps: Sequence[HeadMaps], heads: Sequence[int], name: str) -> Normalize:
    """One scale for all models and heads; it leaves out the largest 1 %, or one channel would bleach the rest."""
    shown = np.concatenate([np.abs(getattr(one, name)[heads]).ravel() for one in maps])
    limit = float(np.quantile(shown, 0.99)) or 1.0
    return Normalize(-limit, limit)


def _head(row: Sequence[Axes], maps: HeadMaps, head: int, scales: Sequence[Normalize]) -> None:
    length = maps.probabilities.shape[-1]
    later = np.triu(np.ones((length, length), bool), 1)
    probability = np.ma.masked_where(later, maps.probabilities[head])
    images = (probability, maps.values[head], maps.weighted[head])
    for axes, image, scale, colours in zip(row, images, scales, _colour_maps(), strict=True):
        axes.imshow(image, norm=scale, cmap=colours, aspect="auto", interpolation="none")
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, linewidth=0.6)
        axes.axhline(maps.text_from - 0.5, color=_BOUNDARY, lw=0.7, ls=(0, (3, 2)))
    row[0].axvline(maps.text_from - 0.5, color=_BOUNDARY, lw=0.7, ls=(0, (3, 2)))


def _tick(set_ticks: Callable[..., Any], maps: HeadMaps, **look: Any) -> None:
    """Write where the speech is and where the text."""
    length = maps.probabilities.shape[-1]
    set_ticks([(maps.text_from - 1) / 2, (maps.text_from + length - 1) / 2], ["speech", "text"], **look)


def _colour_bar(axes: Axes, kind: str, scale: Normalize, colours: Colormap, palette: Palette) -> None:
    signed = kind != KINDS[0]
    extend = "both" if signed else "neither"
    bar: Any = axes.figure.colorbar(ScalarMappable(scale, colours), cax=axes, orientation="horizontal", extend=extend)
    limit = float(scale.vmax or 1)
    ticks = (-limit, 0, limit) if signed else (0, 0.05, 0.25, 0.5, 1)
    bar.set_ticks(ticks, labels=[f"{tick:.2g}".replace("-", "−") for tick in ticks])
    bar.set_label({"weighted": "weighted value (probability × value)"}.get(kind, kind), fontsize=8.5)
    bar.ax.grid(visible=False)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set(linewidth=0.6, edgecolor=palette.ink)
    bar.solids.set_rasterized(True)
