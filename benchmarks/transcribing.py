"""How fast recordings are written down, and how rightly they are cut and timed; one thread everywhere.

    python benchmarks/transcribing.py RECORDINGS SENTENCES --output results/transcribing.json

RECORDINGS is a corpus of speech that the model never saw (a layout of ``sparq corpus``; its last utterances are taken),
SENTENCES a TSV of sentences that it never saw, to be read aloud by a voice that tells its word times. ``cpu`` is
processor time, which a busy machine disturbs least; ``clock`` is what a watch would show.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparq
from sparq.artifacts import provenance, write_text
from sparq.assets import embedded
from sparq.corpus.readers import Recording, read_corpus
from sparq.evaluation import word_error_rate
from sparq.language.alignment import word_times
from sparq.language.generation import GenerationOptions, generate
from sparq.language.listening import LISTENING
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS, prompt
from sparq.language.vocabulary import Modality
from sparq.speech.activity import load_detector
from sparq.speech.audio import RATE, load_audio, save_audio
from sparq.speech.segmentation import spoken_spans
from sparq.speech.voices import load_voice

WHAT = {
    "start": "sparq transcribe on 10 s of speech, seconds: the whole command, and the work when the model is there",
    "speed": "seconds of sound for a second of one processor; 44 s at 48 kHz, each step timed apart",
    "batches": "64 utterances to text, greedy, seconds; how many texts are those of the search without a cache",
    "words": "milliseconds from the times that a voice tells of its words, and those of words at even pace",
    "cutting": "word error rate in percent on one long recording, cut by each detector, and at its true sentences",
}
PAUSES = (0.0, 0.1, 0.3, 0.8, 2.5)  # seconds between the sentences of the long recording, drawn alike
PIECES = 60  # of an answer, at most, in the comparison of batches


def timed(run: Callable[[], Any], repeats: int = 1) -> tuple[Any, dict[str, float]]:
    """What a function gives, and the seconds that it takes; of several times the fastest counts."""
    took: dict[str, float] = {}
    for _ in range(repeats):
        clock, cpu = time.perf_counter(), time.process_time()
        made = run()
        found = {"clock": time.perf_counter() - clock, "cpu": time.process_time() - cpu}
        took = {name: round(min(seconds, took.get(name, seconds)), 4) for name, seconds in found.items()}
    return made, took


def cold_start() -> dict[str, object]:
    """The command on ten seconds, from nothing; and what of that is left when the model is there."""
    wave = load_audio(embedded("recordings/two_cities.wav"))[: 10 * RATE]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ten.wav"
        save_audio(path, wave)
        command = [sys.executable, "-m", "sparq.cli", "transcribe", str(path)]
        before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        clock, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lm = sparq.load()
    _ = lm.extractor, lm.detector
    _, work = timed(lambda: lm.transcribe(wave), 3)
    return {"whole": {"clock": round(clock, 2), "cpu": round(cpu, 2)}, "work": work, "text": " ".join(text.split())}


def without_cache(lm: SpeechLM, ids: list[int]) -> list[int]:
    """Greedy search as its definition has it: the whole sequence anew for every piece."""
    allowed = torch.from_numpy(lm.vocabulary.allowed(Modality.TEXT))
    made: list[int] = []
    while len(made) < PIECES:
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([ids + made]), use_cache=False).logits[0, -1]
        best = int(logits.masked_fill(~allowed, -torch.inf).argmax())
        if best == lm.vocabulary.end_id and made:
            break
        made.append(best)
    return made


def batches(lm: SpeechLM, waves: list[np.ndarray]) -> dict[str, object]:
    units = lm.extractor.extract(waves)
    prompts = [prompt(TASKS["asr"], lm.vocabulary, one) for one in units]
    options = GenerationOptions(max_pieces=PIECES)

    def search(given: list[list[int]], batch: int = 16) -> list[list[int]]:
        return generate(lm.model, lm.vocabulary, given, Modality.TEXT, options, batch=batch)

    found = {
        "one by one, no cache": timed(lambda: [without_cache(lm, ids) for ids in prompts]),
        "one by one": timed(lambda: [search([ids])[0] for ids in prompts]),
        **{f"batches of {size}": timed(lambda size=size: search(prompts, size)) for size in (16, 64)},
    }
    expected, slowest = found["one by one, no cache"]
    return {
        name: {**took, "same texts": sum(a == b for a, b in zip(answers, expected, strict=True)),
               "times faster": {kind: round(slowest[kind] / took[kind], 1) for kind in took}}
        for name, (answers, took) in found.items()
    } | {"utterances": len(waves), "seconds of speech": round(sum(map(len, waves)) / RATE, 1)}  # fmt: skip


def real_time(lm: SpeechLM) -> dict[str, object]:
    """Seconds of sound for a second of work, of each step and of all."""
    path = embedded("recordings/two_cities.wav")
    wave, read = timed(lambda: load_audio(path), 20)
    spans, cut = timed(lambda: spoken_spans(wave, lm.detector, lm.limits.seconds), 20)
    pieces = [wave[span.start : span.stop] for span in spans]
    features, encode = timed(lambda: lm.extractor.encoder.encode(pieces), 20)
    units, cluster = timed(lambda: [lm.codebook.assign(one) for one in features], 20)
    seconds = len(wave) / RATE
    steps = {"decode and resample": read, "find speech": cut, "encode": encode, "cluster": cluster}
    found = {name: round(seconds / max(one["cpu"], 1e-3)) for name, one in steps.items()}
    found["file to units"] = round(seconds / (read["cpu"] + encode["cpu"] + cluster["cpu"]))
    for name, options in {"greedy": GenerationOptions(), "a beam of 8": LISTENING}.items():
        _, took = timed(lambda options=options: lm.write_down(units, options))
        found[f"units to text, {name}"] = round(seconds / took["cpu"], 1)
    return found


def cutting(lm: SpeechLM, chosen: list[Recording]) -> dict[str, object]:
    """Word error rates on one long recording, cut by those who find speech, and at its true sentences."""
    random = np.random.default_rng(0)
    parts, spans, now = [], [], 0
    for one in chosen:
        assert one.audio is not None
        wave, gap = load_audio(one.audio), np.zeros(int(RATE * random.choice(PAUSES)), np.float32)
        spans.append((now, now + len(wave)))
        parts += [wave, gap]
        now += len(wave) + len(gap)
    whole = (np.concatenate(parts) + 1e-3 * random.normal(size=now)).astype(np.float32)
    truth = " ".join(one.text for one in chosen)
    cuts = {"the true sentences": spans}
    for name in ("silero", "loudness"):
        found = spoken_spans(whole, load_detector(name), lm.limits.seconds)
        cuts[name] = [(span.start, span.stop) for span in found]
    rows: dict[str, object] = {"seconds": round(len(whole) / RATE), "words": len(truth.split())}
    for name, at in cuts.items():
        units = lm.extractor.extract([whole[start:stop] for start, stop in at])
        rate = word_error_rate([truth], [" ".join(lm.write_down([one for one in units if len(one)]))]).wer
        kept = sum(stop - start for start, stop in at) / RATE
        rows[name] = {"wer": round(rate, 1), "stretches": len(at), "seconds kept": round(kept)}
        print(name, rows[name], flush=True)
    return rows


def words(lm: SpeechLM, sentences: list[str]) -> dict[str, object]:
    """Milliseconds by which words are off, on a voice that tells when it said them; and at even pace."""
    voice, frame = load_voice("hibari"), lm.extractor.encoder.hop / lm.extractor.encoder.rate
    off: dict[str, list[float]] = {"start": [], "end": [], "centre": [], "centre at even pace": []}
    for sentence in sentences:
        said = voice.speak(sentence)
        (units,) = lm.extractor.extract([said.waveform])
        found = word_times(lm.model, lm.vocabulary, units, lm.vocabulary.write_text(sentence), frame)
        if said.words is None or len(found) != len(said.words) or len(said.waveform) > lm.limits.seconds * RATE:
            continue
        for index, (one, true) in enumerate(zip(found, said.words, strict=True)):
            even = (index + 0.5) / len(found) * len(units) * frame
            centre = (true.start + true.end) / 2
            errors = (one.start - true.start, one.end - true.end, (one.start + one.end) / 2 - centre, even - centre)
            for errors_of, error in zip(off.values(), errors, strict=True):
                errors_of.append(1000 * error)
    return {"words": len(off["centre"])} | {
        name: {"median": round(float(np.median(np.abs(of))), 1), "bias": round(float(np.median(of)), 1),
               "90 % within": round(float(np.quantile(np.abs(of), 0.9)), 1)}
        for name, of in off.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--parts", nargs="*", choices=WHAT, help="measure these anew (default: all)")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    lm = sparq.load()
    chosen = [one for one in read_corpus(given.recordings) if one.audio][-64:]
    lines = given.sentences.read_text(encoding="utf-8").splitlines()[:40]
    measures: dict[str, Callable[[], object]] = {
        "start": cold_start,
        "speed": lambda: real_time(lm),
        "batches": lambda: batches(lm, [load_audio(one.audio) for one in chosen if one.audio]),
        "words": lambda: words(lm, [line.partition("\t")[2] for line in lines]),
        "cutting": lambda: cutting(lm, chosen),
    }
    kept = json.loads(given.output.read_text(encoding="utf-8")) if given.output.is_file() else {"what": WHAT}
    for part in given.parts or measures:
        found = measures[part]()
        kept[part] = {"made": provenance(), "load average": round(os.getloadavg()[0], 1), "measured": found}
        print(json.dumps({part: kept[part]["measured"]}, indent=1), flush=True)
        write_text(given.output, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
