"""How every figure is drawn: one style, for the inside of a page as for a file of its own.

In a page a figure takes its colours, its ink and its type from the page, light or dark; in a file they are those of the
light page. Colours are Okabe and Ito's, which the colour-blind tell apart; line styles, hatches and labels say the same
again.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sparq.artifacts import write_text
from sparq.errors import UserError

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
FORMATS = (".svg", ".png")


@dataclasses.dataclass(frozen=True)
class Palette:
    """The colours of a figure.

    Attributes:
        ink: of text and axes.
        grid: of lines behind the data.
        paper: behind everything.
        sinks: of each attention variant.
    """

    ink: str
    grid: str
    paper: str
    sinks: Mapping[str, str]

    def sink(self, name: str) -> str:
        """The colour of an attention variant; the ink for one that has none."""
        return self.sinks.get(name, self.ink)


Draw = Callable[[Palette], Figure]

# Matplotlib wants colours: each of these stands for a CSS variable of the page, and is replaced by it at the end.
_PAGE = Palette("#010203", "#010204", "#010205", {sink: f"#0102{16 + i:02x}" for i, sink in enumerate(LABELS)})
_VARIABLES = {_PAGE.ink: "ink", _PAGE.grid: "grid", _PAGE.paper: "paper"} | {
    colour: f"sink-{sink}" for sink, colour in _PAGE.sinks.items()
}
FILE = Palette(  # as report.html has them
    ink="#1c2128",
    grid="#e6e3dc",
    paper="#ffffff",
    sinks={
        "none": "#c8501a",
        "max": "#0072b2",
        "zero": "#008763",
        "mean": "#a3508a",
        "l1": "#6b6b6b",
        "learned": "#946200",
        "clipped": "#5a5fc4",
        "gated": "#7a5c4a",
    },
)


def _style(palette: Palette) -> dict[Any, Any]:
    inks = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "axes.edgecolor")
    return {
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
        "grid.color": palette.grid,
        "axes.facecolor": "none",
        "figure.facecolor": palette.paper,
        **dict.fromkeys(inks, palette.ink),
    }


def label(sink: str) -> str:
    """Name an attention variant as tables and figures do."""
    return LABELS.get(sink, sink)


def short(value: float) -> str:
    """Write a number with three figures, and thousands set apart."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def page_svg(draw: Draw, name: str) -> str:
    """Write a figure as an SVG element for the inside of a page: its ids its own, its colours the page's.

    Args:
        draw: makes the figure in the colours that it is given.
        name: different from that of every other figure of the page.
    """
    with mpl.rc_context({**_style(_PAGE), "svg.fonttype": "none", "svg.hashsalt": name}):
        text = _svg(draw(_PAGE), transparent=True)
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)[ >].*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--type)", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    return text


def _svg(figure: Figure, **options: Any) -> str:
    """Write a figure as SVG: small, and the same whenever the figure is the same."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, **options)
    text = buffer.getvalue()
    # Matplotlib calls clip paths by addresses in memory, and equal images equally, though nothing refers to these.
    for index, name in enumerate(re.findall(r'<clipPath id="([^"]+)"', text)):
        text = text.replace(name, f"clip{index}")
    return _lean(re.sub(r'(<image[^>]*?) id="[^"]*"', r"\1", text))


def _lean(svg: str) -> str:
    """Write the images inside an SVG with a palette, a byte a pixel in place of four; not a colour changes."""
    return re.sub(r'(?<="data:image/png;base64,)[^"]+', lambda found: _with_palette(found[0]), svg)


def _with_palette(encoded: str) -> str:
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))
    colours, places = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > 256:
        return encoded
    image = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    image.putpalette(colours[:, :3].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=colours[:, 3].tobytes(), optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def check_picture(path: Path, formats: tuple[str, ...] = FORMATS) -> None:
    """Refuse a file that a figure cannot be written to, before there is one.

    Raises:
        UserError: its ending says no format, its folder is missing, or it is a folder.
    """
    if path.suffix.lower() not in formats:
        raise UserError(f"{path}: unknown format (expected a name that ends with {', '.join(formats)})")
    if not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is no folder")
    if path.is_dir():
        raise UserError(f"{path}: is a folder")


def save_figure(draw: Draw, path: Path) -> None:
    """Write a figure into a file of its own, SVG or PNG by the ending of its name, whole or not at all.

    Raises:
        UserError: see :func:`check_picture`.
    """
    check_picture(path)
    # Letters as shapes: who looks at a file may lack the fonts that it was laid out with.
    with mpl.rc_context({**_style(FILE), "svg.fonttype": "path", "svg.hashsalt": path.stem}):
        figure = draw(FILE)
        if path.suffix.lower() == ".svg":
            write_text(path, _svg(figure))
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        figure.savefig(temporary, format="png", dpi=200)
        temporary.replace(path)
