"""Write the measured tables of the documents anew, from what is kept under results/.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from sparq.language.listening import LISTENING_WITH_PRIOR

ROOT = Path(__file__).resolve().parents[1]
ORDER = ("W16A16", "W8A8", "W4A16", "W4A4")
WAYS = ("plain", "rotated")
SINKS = ("none", "max", "zero")
SOURCES = {
    "test": "LJ Speech test sentences, voiced",
    "test/phrases": "phrases of one to five words, voiced",
    "unseen": "LJ Speech test sentences, by two voices never heard",
    "kathleen": "prompts, read by a human",
}


def table(head: list[str], rows: list[list[str]], *, left: int) -> str:
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0: nothing is not −0


def demo(kept: dict[str, Any]) -> str:
    columns = {
        "text ppl": ("text_perplexity", 2), "speech ppl": ("speech_perplexity", 2), "ASR WER %": ("asr_wer", 1),
        "TTS WER %": ("tts_wer", 1), "average drop %": ("average_drop", 1),
        "max. infinity norm": ("maximum_infinity_norm", 1), "avg. kurtosis": ("average_kurtosis", 2),
    }  # fmt: skip
    rows = [
        [row["sink"], row["bits"], *(number(row[name], digits) for name, digits in columns.values())]
        for row in kept["rows"]
    ]
    return table(["attention", "bits", *columns], rows, left=2)


def shipped(kept: dict[str, Any]) -> str:
    rows = []
    for source, what in ((source, what) for source, what in SOURCES.items() if source in kept["sources"]):
        measured = kept["sources"][source]
        utterances = str(measured[SINKS[0]]["utterances"])
        for task, name in (("ASR", "asr_wer"), ("ASR with a prior", "asr_wer_with_prior"), ("TTS", "tts_wer")):
            rows.append([what, utterances, task, *(number(measured[sink][name], 1) for sink in SINKS)])
    before = (
        "Word error rates in percent, on what they never saw ([JSON](results/shipped_models.json); they listen in "
        f"four views that score a beam of {kept['beam']} together and weigh again what it finds; with the prior "
        f"{kept['prior']}, as `sparq transcribe` where it is installed, it is a beam of {LISTENING_WITH_PRIOR.beams}; "
        "they speak what they hear best of five draws):"
    )
    alone = kept["resynthesis_wer"]
    after = (
        f"The vocoder alone, from real units of the same sentences: {alone['test']['raw units']:.1f} %, and "
        f"{alone['test']['merged units']:.1f} % from merged ones with predicted durations. Of the sentences 2 % also "
        "occur inside a training text. The prior has read the web, which may hold them, too."
    )
    made = table(["heard or said", "number", "task", *SINKS], rows, left=3)
    return f"{textwrap.fill(before, 120)}\n\n{made}\n{textwrap.fill(after, 120)}\n"


def method_name(row: dict[str, Any]) -> str:
    clipped = f", {row['weight_clip_percent']:g} % clipped" if row["weight_clip_percent"] else ""
    grid = f", {row['activation_grid']} tokens" if row.get("activation_grid") else ""
    share = f", {100 * row['activation_clip']:g} % of their range" if row.get("activation_clip", 1) < 1 else ""
    heads = ", scales by head" if row.get("state_grids") == "head" else ""
    return row["method"] + (", GPTQ" if row["rounding"] == "gptq" else "") + clipped + grid + share + heads


def methods(kept: dict[str, Any]) -> str:
    rows = [
        [row["bits"], method_name(row), *(number(row["perplexity"][kind], 1) for kind in ("text", "speech")),
         number(row["seconds_to_quantise"], 0)]
        for row in kept["rows"]
    ]  # fmt: skip
    return table(["bits", "method", "text perplexity", "speech perplexity", "seconds"], rows, left=2)


def layers(kept: dict[str, Any]) -> str:
    """The layers of a deep model between which something happens."""
    sinks = kept["measured"]["text"]["sinks"]
    rows = []
    for layer in (0, 2, 10, 11, 12, 20, 23, 29):
        heads, largest = sinks["by_head"][layer], sinks["largest"][layer]
        place = f"token {largest['position']}, channel {largest['channel']}"
        shares = (100 * sum(heads) / len(heads), 100 * max(heads))
        sizes = (number(largest["magnitude"], 0), number(sinks["ratios"][layer], 0), number(sinks["massive"][layer], 1))
        rows.append([str(layer), *(number(share, 1) for share in shares), *sizes, place])
    head = ["layer", "first token %", "strongest head %", "largest", "in medians", "massive", "where the largest is"]
    return table(head, rows, left=1)


def attention_sinks(kept: dict[str, Any]) -> str:
    rows = []
    for name in SINKS:
        for kind, one in kept["models"][name].items():
            sinks = one["sinks"]
            unspent = [share for heads in sinks["unspent"] for share in heads]
            shares = (sinks["first_token_attention"], sinks["sink_heads"], abs(sum(unspent) / len(unspent)))
            sizes = (sinks["massive_activation_ratio"], one["maximum_infinity_norm"], one["average_kurtosis"])
            rows.append([name, kind, *(number(100 * share, 1) for share in shares), *(number(x, 1) for x in sizes)])
    head = ["attention", "input", "first token %", "sink heads %", "unspent %", "largest, medians"]
    return table([*head, "max. infinity norm", "avg. kurtosis"], rows, left=2)


def inputs(kept: dict[str, Any]) -> str:
    rows = []
    for row in kept["rows"]:
        read = row["outliers_of_linear_inputs"]["text"]
        crests = [number(read[name]["average_crest_factor"], 1) for name in read]
        others = (read["all"]["maximum_infinity_norm"], read["all"]["average_kurtosis"])
        rows.append([method_name(row), *crests, *(number(x, 1) for x in others), number(row["perplexity"]["text"], 1)])
    head = ["method", "q, k, v", "attention output", "MLP", "MLP output", "all"]
    return table([*head, "max. infinity norm", "avg. kurtosis", "text perplexity, W4A4"], rows, left=1)


def optimizers(kept: dict[str, Any]) -> str:
    columns = {
        "perplexity": ("perplexity", 1, 1), "avg. kurtosis": ("average_kurtosis", 2, 1),
        "max. infinity norm": ("maximum_infinity_norm", 0, 1), "largest / median": ("massive_activation_ratio", 0, 1),
        "to the first token %": ("first_token_attention", 1, 100), "sink heads %": ("sink_heads", 1, 100),
        "unspent %": ("attention_unspent", 1, 100),
    }  # fmt: skip
    quantised = ("round W8A8", "round W4A4", "smoothquant W4A4")
    rows = [
        [row["attention"], row["optimizer"], f"{row['learning_rate']:g}", str(row["steps"]),
         *(number(row[name] * factor, digits) for name, digits, factor in columns.values()),
         *(number(row["quantised"][name]["degradation_percent"], 1) for name in quantised)]
        for row in kept["cells"]
    ]  # fmt: skip
    head = ["attention", "optimizer", "rate", "steps", *columns, *(f"{name} +%" for name in quantised)]
    return table(head, rows, left=2)


def short_methods(kept: dict[str, Any]) -> str:
    rows = [[row["bits"], method_name(row), number(row["perplexity"]["text"], 1)] for row in kept["rows"]]
    return table(["bits", "method", "text perplexity"], rows, left=2)


def smollm2(kept: dict[str, Any]) -> str:
    files = sorted((ROOT / "results").glob("quantization_smollm2_*.json"), reverse=True)
    found = [one for file in files for one in load(file.stem)["rows"]]
    others = [row for row in found if row["bits"] != "W16A16"]  # which is in every file
    rows = sorted([*kept["rows"], *others], key=lambda row: ORDER.index(row["bits"]))
    return short_methods({"rows": rows})


def rotation(kept: dict[str, Any]) -> str:
    columns = {"weight": "weight_error", "output": "output_error"}
    rows = [
        [
            name,
            *(number(100 * kind[way][key], 1) for key in columns.values() for way in WAYS),
            *(number(kind[way]["perplexity"], 1) for way in WAYS),
        ]
        for name, kind in kept["kinds"].items()
    ]
    head = [f"{name} error %, {way}" for name in columns for way in WAYS]
    return table(["linear", *head, *(f"perplexity, {way}" for way in WAYS)], rows, left=1)


HEARD = {
    "hibari": "hibari",
    "piper-joe": "Piper's Joe",
    "kathleen": "a woman, recorded (Kathleen)",
    "an4": "many people, recorded (AN4)",
}


def units(kept: dict[str, Any]) -> str:
    rows = []
    for book in kept["codebooks"].values():
        kind = "phonetic" if book["phonetic"] else "plain"
        layers = ", ".join(map(str, book["layers"]))
        for source, scores in book["speech"].items():
            numbers = [scores["phone_error_rate_percent"], scores["units_per_second"]]
            rows.append(
                [
                    f"{kind}, k = {book['size']}, layers {layers}" if source == "hibari" else "",
                    HEARD.get(source, source),
                    *(number(value, 1) for value in numbers),
                    number(scores.get("other_reader"), 2),
                ]
            )
    return table(["units", "who is heard", "phone errors %", "units a second", "other reader"], rows, left=2)


TABLES = (
    ("README.md", "demo-table", "demo_table", demo),
    ("README.md", "shipped", "shipped_models", shipped),
    ("docs/quantization.md", "smollm2", "quantization_smollm2", smollm2),
    ("docs/quantization.md", "rotation", "rotation", rotation),
    ("docs/quantization.md", "speechlm-none", "quantization_speechlm_none", methods),
    ("docs/outliers.md", "layers", "outliers_smollm2", layers),
    ("docs/outliers.md", "sinks", "outliers_shipped", attention_sinks),
    ("docs/outliers.md", "inputs-smollm2", "linear_inputs_smollm2", inputs),
    ("docs/outliers.md", "inputs-speechlm-none", "linear_inputs_speechlm_none", inputs),
    ("docs/units.md", "units", "units", units),
    ("docs/optimizers.md", "optimizers", "optimizers", optimizers),
)


def load(file: str) -> Any:
    return json.loads((ROOT / "results" / f"{file}.json").read_text(encoding="utf-8"))


def main() -> None:
    for document, name, file, written in TABLES:
        kept = load(file)
        text = (ROOT / document).read_text(encoding="utf-8")
        before, marked, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert marked, name
        assert end, name
        (ROOT / document).write_text(before + marked + written(kept) + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
