"""What a deployment saves and costs: bytes, memory and speed, and the scores of the deployed model.

    python benchmarks/deployment.py speed speechlm-max --threads 1         # any model that `sparq bench deploy` takes
    python benchmarks/deployment.py speed smollm2-135m --extended 1007
    python benchmarks/deployment.py speed smollm2-135m --extended 1007 --device cuda --output results/deploy_cuda.json
    python benchmarks/deployment.py scores speechlm-max runs/small-trunk/corpus --sentences 50

Each call adds to the file; what it holds under another name stays. With --extended the model gets so many more ids and
an untied output layer, as a vocabulary with speech pieces would give it; its embeddings are then random, which changes
no speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import sparq
from sparq.adaptation.start import pretrained_model
from sparq.artifacts import provenance, write_text
from sparq.assets import language_model, ready_made
from sparq.attention import load_pretrained
from sparq.commands.bench import told_of
from sparq.config import EvaluationConfig
from sparq.corpus.corpus import Corpus
from sparq.deployment.speed import BASELINE, LOW_BIT, ONNX, Load, compare, forms_here
from sparq.evaluation.scoring import assess
from sparq.language.folder import no_progress_bars
from sparq.speech.recogniser import load_recogniser


def extended(name: str, more: int) -> Any:
    """A pretrained model as an extended vocabulary leaves it: so many more ids, and an output layer of its own."""
    size = load_pretrained(language_model(name)).config.vocab_size + more
    vocabulary: Any = SimpleNamespace(size=size, pad_id=0, end_id=0)
    return pretrained_model(language_model(name), vocabulary)


def speed(given: argparse.Namespace) -> dict[str, Any]:
    folder = ready_made(given.model, must_exist=False)
    if given.extended:
        model = extended(given.model, given.extended)
    elif folder:
        model = sparq.load(folder).model
    else:
        model = load_pretrained(language_model(given.model), dtype=torch.float32)
    load = Load(given.prompt, given.tokens, given.repeats, given.threads, given.device)
    with tempfile.TemporaryDirectory() as work, no_progress_bars():
        found = compare(model, Path(work), load, told=lambda form: print(form, "...", flush=True))
    base = next(one for one in found if one.form == BASELINE)
    rows = [told_of(one, base) for one in found]
    for row in rows:
        print({name: value for name, value in row.items() if name == "form" or "ratio" in name})
    return {
        "load": dataclasses.asdict(load),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "other_programs_load_average": round(os.getloadavg()[0], 1),
        "forms": rows,
    }


def scores(given: argparse.Namespace) -> dict[str, Any]:
    folder = ready_made(given.model)
    assert folder is not None
    held_out = Corpus.load(given.corpus).utterances("held_out")
    judge, config, rows = load_recogniser(), EvaluationConfig(sentences=given.sentences), []
    with tempfile.TemporaryDirectory() as work:
        for form in forms_here("cpu"):
            lm = sparq.load(folder, prior="none")
            bits = {**LOW_BIT, **ONNX}.get(form)
            if bits is not None:
                lm = sparq.deploy(lm, Path(work) / form, bits, engine=form.split()[0])
            elif form != BASELINE:
                continue
            result = assess(lm, held_out, judge, config)
            row = {name: round(value, 3) for name, value in dataclasses.asdict(result.scores).items()}
            rows.append({"form": form, **row})
            print(rows[-1], flush=True)
    return {"utterances": result.asr.utterances, "words": result.asr.words, "beam": config.beam, "forms": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, dest="part")
    timed = parts.add_parser("speed")
    timed.set_defaults(call=speed)
    timed.add_argument("model")
    timed.add_argument("--extended", type=int, default=0, help="more ids, of speech")
    timed.add_argument("--prompt", type=int, default=Load.prompt)
    timed.add_argument("--tokens", type=int, default=Load.decoded)
    timed.add_argument("--repeats", type=int, default=Load.repeats)
    timed.add_argument("--threads", type=int, default=0)
    timed.add_argument("--device", default="cpu", help="where torch computes")
    scored = parts.add_parser("scores")
    scored.set_defaults(call=scores)
    scored.add_argument("model")
    scored.add_argument("corpus", type=Path)
    scored.add_argument("--sentences", type=int, default=50)
    for part in (timed, scored):
        part.add_argument("--output", type=Path, default=Path("results/deploy.json"))
    given = parser.parse_args()
    found = given.call(given)
    kept = json.loads(given.output.read_text(encoding="utf-8")) if given.output.is_file() else {}
    threads = f", {given.threads} thread{'s' * (given.threads > 1)}" if getattr(given, "threads", 0) else ""
    name = given.model + (", extended vocabulary" if getattr(given, "extended", None) else "") + threads
    kept.setdefault(given.part, {})[name] = {"made": provenance(), **found}
    write_text(given.output, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
