"""A whole run: every stage of a recipe, then its table and its report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sparq.adaptation.training import HISTORY
from sparq.artifacts import provenance, write_text
from sparq.assets import embedded, embedded_names
from sparq.config import QuantizationRow, RecordingConfig
from sparq.errors import UserError
from sparq.evaluation import Scores, average_drop, word_error_rate
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS
from sparq.making import SPEECHLM, TRAINING, Watcher
from sparq.paper.figures import LIVE_PANELS
from sparq.paper.heatmaps import head_maps
from sparq.paper.report import (
    LossCurve,
    OutlierBar,
    OutlierCurve,
    Recording,
    ReportData,
    ScoreRow,
    Sound,
    SpokenSentence,
    Take,
    Transcript,
    write_report,
)
from sparq.pipeline import FULL, RESULT, Run, model_name
from sparq.recipe import Recipe
from sparq.schema import dump
from sparq.speech.audio import load_audio, save_audio
from sparq.speech.recogniser import Recogniser

REPORT = "report.html"
TABLE = "table.json"
METHOD_TITLES = {
    "smoothquant": "SmoothQuant",
    "rotation": "Rotation",
    "omniquant": "OmniQuant",
    "affinequant": "AffineQuant",
    "flatquant": "FlatQuant",
    "round": "Rounding",
}
OUTLIERS_ON = "speech with text"  # the input whose outliers stand in the table


def finish(recipe: Recipe, watcher: Watcher, *, quiet: bool = False) -> tuple[list[dict[str, Any]], Path]:
    """Run every stage of a recipe that is not complete, and write ``table.json`` and ``report.html``.

    Args:
        recipe: what to do.
        watcher: told how it goes.
        quiet: without the progress bar of the corpus.

    Returns:
        The rows of the table and the path of the report.

    Raises:
        UserError: the recipe cannot be run as it is.
    """
    run = Run(recipe, watcher, quiet=quiet)
    run.check()
    recordings = [(config, recording_path(config)) for config in recipe.evaluation.recordings]  # said early
    results = {}
    for sink, row in run.models():
        folder = run.folder / run.scored(sink, row).kind.removeprefix("stage:")
        results[sink, row] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    measured = next(iter(results.values()))
    sentences = max((measured[task]["utterances"] for task in ("asr", "tts") if measured[task]), default=0)
    rows = score_rows(results)
    plain = [dataclasses.asdict(row) for row in rows]
    write_text(run.folder / TABLE, json.dumps({"rows": plain, "made": provenance()}, indent=1) + "\n")
    watcher.note("recordings and spoken sentences for the report")
    models = {sink: SpeechLM.load(run.folder / sink / SPEECHLM) for sink in recipe.attention.sinks}
    sample = next((u for u in run.corpus.utterances("held_out") if u.serves(TASKS["asr"])), None)
    data = ReportData(
        name=recipe.name,
        description=recipe.description,
        made=provenance(),
        recipe=yaml.safe_dump(dump(recipe), sort_keys=False, allow_unicode=True),
        facts=_facts(run, next(iter(models.values()))),
        scores=rows,
        curves=[_curve(run, sink) for sink in models],
        outliers=_bars(results),
        live=[_live(run, sink) for sink in models],
        heads=[] if sample is None else [head_maps(sink, lm, sample) for sink, lm in models.items()],
        sample="" if sample is None else sample.text,
        recordings=[_recording(config, path, models) for config, path in recordings],
        spoken=_spoken(run, models),
        notes=[
            f"Maximum infinity norm and average kurtosis in the table are those on {OUTLIERS_ON}.",
            f"Word error rates are over {sentences} sentences, so differences of a few points are noise.",
        ],
    )
    write_report(run.folder / REPORT, data)
    return plain, run.folder / REPORT


def score_rows(results: dict[tuple[str, QuantizationRow | None], dict[str, Any]]) -> list[ScoreRow]:
    """Make the rows of the table; a variant's average drop is against the same variant in full precision."""
    rows = []
    for (sink, row), result in results.items():
        scores = Scores(**result["scores"])
        drop = None
        if row is not None:
            try:
                drop = average_drop(Scores(**results[sink, None]["scores"]), scores)
            except UserError:  # a full-precision score of 0, relative to which nothing is
                drop = None
        outliers = result["outliers"].get(OUTLIERS_ON, {})
        rows.append(
            ScoreRow(
                sink=sink,
                bits=FULL if row is None else f"W{row.weight_bits}A{row.activation_bits}",
                method=None if row is None else method_title(row),
                **dataclasses.asdict(scores),
                average_drop=drop,
                maximum_infinity_norm=outliers.get("maximum_infinity_norm"),
                average_kurtosis=outliers.get("average_kurtosis"),
            )
        )
    return rows


def method_title(row: QuantizationRow) -> str:
    """Call a quantisation as the literature does, such as "SmoothQuant, 1 % clipped" or "Rotation, GPTQ"."""
    rounding = "" if row.rounding == "nearest" else f", {row.rounding.upper()}"
    clipped = f", {row.weight_clip_percent:g} % clipped" if row.weight_clip_percent else ""
    grid = f", {row.activation_grid} tokens" if row.activation_grid else ""
    share = f", {100 * row.activation_clip:g} % of their range" if row.activation_clip < 1 else ""
    heads = ", scales by head" if row.state_grids == "head" else ""
    return METHOD_TITLES[row.method] + rounding + clipped + grid + share + heads


def recording_path(config: RecordingConfig) -> Path:
    """Find a recording of a recipe: one that travels in a package, or a file.

    Raises:
        UserError: there is no such file.
    """
    if config.path in embedded_names():
        return embedded(config.path)
    if not Path(config.path).is_file():
        raise UserError(f"evaluation.recordings: {config.path}: no such file")
    return Path(config.path)


def _facts(run: Run, lm: SpeechLM) -> dict[str, str]:
    parameters = sum(p.numel() for p in lm.model.parameters()) / 1e6
    return {
        "Model": f"{lm.model.config.model_type}, {parameters:.1f} million parameters",
        "Vocabulary": f"{lm.vocabulary.mode}, {lm.vocabulary.size} pieces",
        "Units": f"{lm.codebook.size} of {lm.codebook.encoder_name}, layers {', '.join(map(str, lm.codebook.layers))}",
        "Corpus": run.corpus.summary,
    }


def _history(run: Run, sink: str) -> list[dict[str, float]]:
    return list(json.loads((run.folder / sink / TRAINING / HISTORY).read_text(encoding="utf-8")))


def _curve(run: Run, sink: str) -> LossCurve:
    losses = [(entry["step"], entry["loss"]) for entry in _history(run, sink) if "loss" in entry]
    return LossCurve(sink, [step for step, _ in losses], [loss for _, loss in losses])


def _live(run: Run, sink: str) -> OutlierCurve:
    names = {name: f"outliers/{OUTLIERS_ON}/{name}" for name in LIVE_PANELS}
    measured = [entry for entry in _history(run, sink) if set(names.values()) <= entry.keys()]
    values = {name: [entry[logged] for entry in measured] for name, logged in names.items()}
    return OutlierCurve(sink, [entry["step"] for entry in measured], values)


def _bars(results: dict[tuple[str, QuantizationRow | None], dict[str, Any]]) -> list[OutlierBar]:
    return [
        OutlierBar(sink, kind, report["maximum_infinity_norm"], report["average_kurtosis"])
        for (sink, row), result in results.items()
        if row is None
        for kind, report in result["outliers"].items()
    ]


def _recording(config: RecordingConfig, path: Path, models: dict[str, SpeechLM]) -> Recording:
    waveform = load_audio(path)
    transcripts = []
    for sink, lm in models.items():
        text = lm.transcribe(waveform)
        wer = None if config.reference is None else word_error_rate([config.reference], [text]).wer
        transcripts.append(Transcript(sink, text, wer))
    return Recording(path.name, Sound(waveform, 16_000), config.reference, transcripts)


def _spoken(run: Run, models: dict[str, SpeechLM]) -> Sequence[SpokenSentence]:
    """Let every variant speak, in full precision and at the narrowest width, and keep the wavs beside the report."""
    judge: Recogniser = run.judge
    sentences: list[SpokenSentence] = []
    rows = run.recipe.quantization
    narrow = min(rows, key=lambda row: row.weight_bits + row.activation_bits) if rows else None
    voices = {(sink, FULL): lm for sink, lm in models.items()}
    if narrow is not None:
        bits = f"W{narrow.weight_bits}A{narrow.activation_bits}"
        for sink in models:
            voices[sink, bits] = SpeechLM.load(run.folder / model_name(sink, narrow) / SPEECHLM)
    for index, text in enumerate(run.recipe.evaluation.spoken):
        takes = []
        for (sink, bits), lm in voices.items():
            waveform, rate = lm.speak(text)
            save_audio(run.folder / f"spoken-{index + 1}-{sink}-{bits}.wav", waveform, rate)
            takes.append(Take(sink, Sound(waveform, rate), judge.transcribe([waveform])[0], bits))
        sentences.append(SpokenSentence(text, takes))
    return sentences
