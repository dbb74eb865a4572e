"""The report of a run: one page without any request to anywhere, with its table, figures and recordings inside."""

from __future__ import annotations

import base64
import dataclasses
import difflib
import io
import math
import re
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np

from sparq.artifacts import write_text
from sparq.paper.drawing import label, short
from sparq.paper.figures import LossCurve, OutlierBar, OutlierCurve, loss_curves, outlier_bars, outlier_curves
from sparq.paper.heatmaps import HeadMaps, heatmaps
from sparq.paper.outlier_maps import Measured, outlier_maps

__all__ = [
    "LossCurve",
    "OutlierBar",
    "OutlierCurve",
    "Recording",
    "ReportData",
    "ScoreRow",
    "Sound",
    "SpokenSentence",
    "Take",
    "Transcript",
    "write_report",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One row of the table: an attention variant at one width; lower is better in every number, None is not measured.

    Attributes:
        sink: the attention variant.
        bits: "W16A16" and so on.
        method: how it was quantised, such as "SmoothQuant"; None for the full-precision model.
        text_perplexity: of textLM.
        speech_perplexity: of speechLM.
        asr_wer: percent.
        tts_wer: percent, vocoder and judge included.
        average_drop: percent, against the same variant in full precision; None for that itself.
        maximum_infinity_norm: largest over the modules.
        average_kurtosis: mean over the modules.
    """

    sink: str
    bits: str
    method: str | None = None
    text_perplexity: float | None = None
    speech_perplexity: float | None = None
    asr_wer: float | None = None
    tts_wer: float | None = None
    average_drop: float | None = None
    maximum_infinity_norm: float | None = None
    average_kurtosis: float | None = None


@dataclasses.dataclass(frozen=True)
class Sound:
    """A waveform, float [samples] within ±1, and its rate in samples per second."""

    waveform: np.ndarray
    rate: int


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What one variant wrote down of a recording, and its word error rate in percent where a reference is known."""

    sink: str
    text: str
    wer: float | None = None


@dataclasses.dataclass(frozen=True)
class Recording:
    """A real recording, what is said in it where that is known, and what the models wrote down."""

    name: str
    sound: Sound
    reference: str | None
    transcripts: Sequence[Transcript]


@dataclasses.dataclass(frozen=True)
class Take:
    """A sentence as one variant spoke it at one width, and what the judge heard."""

    sink: str
    sound: Sound
    heard: str
    bits: str = "W16A16"


@dataclasses.dataclass(frozen=True)
class SpokenSentence:
    """A sentence, and every take of it."""

    text: str
    takes: Sequence[Take]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report shows; what is empty is left out of it.

    Attributes:
        name: of the run.
        description: one or two sentences.
        made: command, commit, machine and date (:func:`sparq.artifacts.provenance`).
        recipe: the recipe as YAML.
        facts: further rows of "what was run", such as {"Model": "Llama, 4.4 million parameters"}.
        scores: the table; rows of one width are shown together.
        curves: training loss of each variant.
        outliers: outliers of each variant on each kind of input.
        live: outliers of each variant as it trained.
        heads: the last layer of each variant on one sample, the vanilla one first.
        sample: what is said in that sample.
        maps: where the outliers of one model are, by kind of input.
        recordings: real recordings with transcripts.
        spoken: spoken sentences.
        notes: what a reader must know of this very run, a sentence or two each.
    """

    name: str
    description: str
    made: Mapping[str, str]
    recipe: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scores: Sequence[ScoreRow] = ()
    curves: Sequence[LossCurve] = ()
    outliers: Sequence[OutlierBar] = ()
    live: Sequence[OutlierCurve] = ()
    heads: Sequence[HeadMaps] = ()
    sample: str = ""
    maps: Mapping[str, Measured] = dataclasses.field(default_factory=dict)
    recordings: Sequence[Recording] = ()
    spoken: Sequence[SpokenSentence] = ()
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column of the table: field of a row, heading, unit, decimals, and whether a sign is always shown."""

    field: str
    heading: str
    unit: str
    decimals: int
    signed: bool = False


COLUMNS = (
    _Column("text_perplexity", "Text perplexity", "per piece", 2),
    _Column("speech_perplexity", "Speech perplexity", "per piece", 2),
    _Column("asr_wer", "ASR WER", "%", 1),
    _Column("tts_wer", "TTS WER", "%", 1),
    _Column("average_drop", "Average drop", "%", 1, signed=True),
    _Column("maximum_infinity_norm", "Maximum infinity norm", "activation", 1),
    _Column("average_kurtosis", "Average kurtosis", "normal: 3", 1),
)


@dataclasses.dataclass(frozen=True)
class _Cell:
    text: str
    best: bool


def write_report(path: Path, data: ReportData) -> None:
    """Write the report as one HTML file, whole or not at all.

    Args:
        path: the file; its folder is made if need be.
        data: what it shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"audio": _audio, "short": short, "label": label, "words": _words}
    curves = [curve for curve in data.curves if len(curve.steps)]  # a run shorter than its log has none
    live = [curve for curve in data.live if len(curve.steps)]
    page = environment.get_template("report.html").render(
        data=data,
        columns=COLUMNS,
        groups=_groups(data.scores),
        curves=curves,
        loss_figure=loss_curves(curves) if curves else "",
        outlier_figure=outlier_bars(data.outliers) if data.outliers else "",
        live=live,
        live_figure=outlier_curves(live) if live else "",
        map_figure=outlier_maps(data.maps) if data.maps else "",
        head_figure=heatmaps(data.heads) if data.heads else "",
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def _groups(scores: Sequence[ScoreRow]) -> list[tuple[str, list[tuple[ScoreRow, list[_Cell]]]]]:
    """Put rows of one method and width together, and mark the best of each of their columns."""
    groups: dict[str, list[ScoreRow]] = {}
    for row in scores:
        title = f"{row.method} {row.bits}, simulated" if row.method else f"Full precision, {row.bits}"
        groups.setdefault(title, []).append(row)
    return [(title, list(zip(rows, _cells(rows), strict=True))) for title, rows in groups.items()]


def _cells(rows: Sequence[ScoreRow]) -> list[list[_Cell]]:
    columns = []
    for column in COLUMNS:
        values = [getattr(row, column.field) for row in rows]
        texts = [_number(value, column) for value in values]
        known = [value for value in values if value is not None and math.isfinite(value)]
        # Numbers that read the same share the honour, and where all read the same there is none.
        best = _number(min(known), column) if len(known) > 1 else None
        columns.append([_Cell(text, best=text == best and len(set(texts)) > 1) for text in texts])
    return [list(cells) for cells in zip(*columns, strict=True)]


def _number(value: float | None, column: _Column) -> str:
    """Write a number of the table: fixed decimals, true minus, thousands set apart, powers of ten from ten million."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    sign = "+" if column.signed else ""
    if abs(value) >= 1e7:
        mantissa, exponent = f"{value:{sign}.1e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return f"{value:{sign},.{column.decimals}f}".replace(",", "\u202f").replace("-", "−")


def _audio(sound: Sound) -> str:
    """Give a waveform as a data URI of a 16-bit wav file."""
    samples = np.clip(np.nan_to_num(np.asarray(sound.waveform, dtype=np.float64)), -1, 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _words(text: str, other: str | None) -> list[tuple[str, bool]]:
    """Split text into words, each with whether another text has it not; case and punctuation aside.

    A marked "[…]" stands where the other text has words and this one has none.
    """
    words = text.split()
    if other is None:
        return [(word, False) for word in words]
    ours, theirs = ([re.sub(r"[^\w']", "", word).lower() for word in side] for side in (words, other.split()))
    shown: list[tuple[str, bool]] = []
    for change, start, stop, _, _ in difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        shown += [("[…]", True)] if change == "insert" else [(word, change != "equal") for word in words[start:stop]]
    return shown
