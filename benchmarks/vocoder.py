"""How fast a vocoder speaks, at once and as a stream, and whether one of many voices speaks in the one it is asked for.

    python benchmarks/vocoder.py speed vocoder --threads 1        # the one that ships; or a folder, or a preset's name
    python benchmarks/vocoder.py first                            # a SpeechLM: when its first sound is there
    python benchmarks/vocoder.py voices runs/vocoder runs/voices  # a vocoder of many voices, a corpus with audio
    python benchmarks/vocoder.py resynthesis vocoder runs/voices --source hibari

Each call adds to the file; what it holds under another name stays. Times are the best of several, by the clock and by
the processor: other programs make the first longer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparq
from sparq.artifacts import provenance, write_text
from sparq.assets import ready_made
from sparq.corpus.corpus import Corpus
from sparq.evaluation.resynthesis import resynthesis
from sparq.language.generation import GenerationOptions
from sparq.speech.duration import DurationPredictor
from sparq.speech.generator import UnitGenerator, VocoderConfig
from sparq.speech.recogniser import load_recogniser
from sparq.speech.speaker import load_speaker_encoder
from sparq.speech.streaming import look_ahead
from sparq.speech.vocoder import Vocoder

GREEDY = GenerationOptions()
TEXT = "The president was in the house, and nobody in the street knew what he would say to the people who had waited."


def best(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Fewest seconds by the clock and by the processor."""
    times = []
    for _ in range(repeats):
        clock, processor = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - clock, time.process_time() - processor))
    return min(t for t, _ in times), min(t for _, t in times)


def load(name: str) -> Vocoder:
    folder = ready_made(name, must_exist=False)
    if folder is not None:
        return Vocoder.load(folder)
    config = VocoderConfig.preset(name)
    return Vocoder(UnitGenerator(config), DurationPredictor(config.units), "none")


def speed(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(given.threads)
    vocoder = load(given.vocoder)
    frames = round(given.seconds * vocoder.rate / vocoder.config.hop)
    units = np.random.default_rng(0).integers(0, vocoder.config.units, frames)
    seconds = frames * vocoder.config.hop / vocoder.rate

    def row(call: Callable[[], Any]) -> dict[str, float]:
        clock, processor = best(call, given.repeats)
        return {"x_real_time": round(seconds / clock, 1), "x_real_time_cpu": round(seconds / processor, 1)}

    rows: dict[str, Any] = {"at once": row(lambda: vocoder.synthesize([units], merged=False))}
    for chunk in (8, 24, 96):
        stream = row(lambda chunk=chunk: list(vocoder.stream(units.tolist(), merged=False, chunk=chunk)))
        first = best(lambda chunk=chunk: next(vocoder.stream(units.tolist(), merged=False, chunk=chunk)), given.repeats)
        rows[f"chunks of {chunk}"] = {
            **stream,
            "first_chunk_ms": round(1000 * first[0], 1),
            "first_chunk_ms_cpu": round(1000 * first[1], 1),
            "chunk_ms": round(1000 * chunk * vocoder.config.hop / vocoder.rate),
        }
    generator = vocoder.generator
    ahead = look_ahead(generator)
    return {
        "threads": given.threads,
        "seconds": round(seconds, 2),
        "parameters": sum(p.numel() for p in generator.parameters()),
        "look_ahead_frames": ahead,
        "look_ahead_ms": round(1000 * ahead * vocoder.config.hop / vocoder.rate),
        "rows": rows,
    }


def first(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(given.threads)
    lm = sparq.load(given.model)
    whole = best(lambda: lm.speak(TEXT, GREEDY), given.repeats)
    chunk = best(lambda: next(lm.stream(TEXT)), given.repeats)
    stream = best(lambda: list(lm.stream(TEXT)), given.repeats)
    chosen = best(lambda: lm.speak(TEXT), given.repeats)
    waveform, rate = lm.speak(TEXT, GREEDY)
    names = {
        "all_at_once": whole,
        "best_of_five_draws": chosen,
        "first_chunk_of_a_stream": chunk,
        "whole_stream": stream,
    }
    return {
        "threads": given.threads,
        "spoken_seconds": round(len(waveform) / rate, 2),
        **{f"{name}_s": round(clock, 3) for name, (clock, _) in names.items()},
        **{f"{name}_s_cpu": round(processor, 3) for name, (_, processor) in names.items()},
    }


def voices(given: argparse.Namespace) -> dict[str, Any]:
    """Mean cosine of what is spoken in each voice to each speaker's mean embedding over held-out recordings."""
    vocoder, corpus = load(given.vocoder), Corpus.load(given.corpus)
    assert vocoder.voices is not None
    encoder = load_speaker_encoder(given.encoder or vocoder.voices.encoder_name)
    recordings = corpus.recordings(split="held_out")
    names = [name for name in vocoder.voices.names if any(r.speaker == name for r in recordings)]
    embedded = encoder.embed([recording.waveform for recording in recordings])
    who = np.array([recording.speaker for recording in recordings])
    means = np.stack([embedded[who == name].mean(0) for name in names])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    units = [recording.units for recording in recordings]

    def table(vectors: np.ndarray) -> dict[str, float]:
        return {name: round(float(mean), 3) for name, mean in zip(names, (vectors @ means.T).mean(0), strict=True)}

    spoken, right = {}, {}
    for index, name in enumerate(names):
        waves = vocoder.synthesize(units, merged=False, speaker=vocoder.embedding(name))
        vectors = encoder.embed(waves)
        spoken[name] = table(vectors)
        right[name] = round(100 * float(((vectors @ means.T).argmax(1) == index).mean()), 1)
    return {
        "encoder": encoder.name,
        "utterances": len(recordings),
        "spoken in the voice of": spoken,
        "percent nearest to the right speaker": right,
        "recordings of": {name: table(embedded[who == name]) for name in names},
    }


def resynthesised(given: argparse.Namespace) -> dict[str, Any]:
    """What ``sparq evaluate --vocoder`` measures, source by source."""
    vocoder, corpus, judge = load(given.vocoder), Corpus.load(given.corpus), load_recogniser()
    encoder = load_speaker_encoder(given.encoder or "resemblyzer")
    return {
        source: dataclasses.asdict(resynthesis(vocoder, corpus.recordings([source], "held_out"), judge, encoder))
        for source in given.source or corpus.sources
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, dest="part")
    for name, call in (("speed", speed), ("first", first), ("voices", voices), ("resynthesis", resynthesised)):
        part = parts.add_parser(name)
        part.set_defaults(call=call)
        part.add_argument("--output", type=Path, default=Path("results/vocoder.json"))
        if name in ("speed", "first"):
            part.add_argument("--threads", type=int, default=2)
            part.add_argument("--repeats", type=int, default=10)
    parts.choices["speed"].add_argument("vocoder")
    parts.choices["speed"].add_argument("--seconds", type=float, default=6.0)
    parts.choices["first"].add_argument("--model")
    for name in ("voices", "resynthesis"):
        parts.choices[name].add_argument("vocoder")
        parts.choices[name].add_argument("corpus", type=Path)
        parts.choices[name].add_argument("--encoder")
    parts.choices["resynthesis"].add_argument("--source", action="append")
    given = parser.parse_args()
    found = given.call(given)
    print(json.dumps(found, indent=1))
    kept = json.loads(given.output.read_text()) if given.output.exists() else {}
    what = getattr(given, "vocoder", None) or getattr(given, "model", None) or "speechlm-max"
    name = f"{Path(what).name}" + (f", {given.threads} threads" if given.part in ("speed", "first") else "")
    load_average = {"load_average": round(os.getloadavg()[0], 1)}
    kept.setdefault(given.part, {})[name] = {"made": provenance(), **load_average, **found}
    write_text(given.output, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
