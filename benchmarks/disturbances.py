"""What each disturbance does to units and to a judge: python benchmarks/disturbances.py TEXT.tsv.

hibari reads sentences; each is disturbed in every way. The distance is the edit distance between the merged units of
the clean and the disturbed sentence, over the number of units of the clean one; the judge's word error rate says
whether the words are still to be understood. For comparison the same sentences in other voices. Writes
results/disturbances.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from corpus_rate import DISTURBANCES
from rapidfuzz.distance import Levenshtein
from threadpoolctl import threadpool_limits

from sparq.artifacts import provenance, write_text
from sparq.corpus.codebook import load_codebook, load_extractor
from sparq.corpus.readers import read_corpus
from sparq.evaluation import word_error_rate
from sparq.speech.augmentation import disturb
from sparq.speech.recogniser import load_recogniser
from sparq.speech.units import merge_repeats
from sparq.speech.voices import load_voice


def distance(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """Edit distance of merged units in percent of those before, over all utterances."""
    merged = [[merge_repeats(units)[0].tolist() for units in some] for some in (before, after)]
    edits = sum(Levenshtein.distance(a, b) for a, b in zip(*merged, strict=True))
    return 100 * edits / sum(map(len, merged[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--sentences", type=int, default=12)
    parser.add_argument("--voices", nargs="*", default=["flite-rms", "pico-us", "piper-joe"])
    parser.add_argument("--output", type=Path, default=Path("results/disturbances.json"))
    given = parser.parse_args()
    texts = [recording.text for recording in read_corpus(given.text)][: given.sentences]
    hibari, judge = load_voice("hibari"), load_recogniser()
    extractor = load_extractor(load_codebook("codebook"))
    said = [hibari.speak(text).waveform for text in texts]
    waves = {"none": said}
    for name, what in DISTURBANCES.items():
        waves[name] = [
            disturb(wave, dataclasses.replace(what, seed=i), said[:i] + said[i + 1 :]) for i, wave in enumerate(said)
        ]
    for name in given.voices:
        voice = load_voice(name)
        waves[name] = [voice.speak(text).waveform for text in texts]
    clean, rows = extractor.extract(said), {}
    for name, heard in waves.items():
        rows[name] = {
            "distance_percent": round(distance(clean, extractor.extract(heard)), 1),
            "judge_wer_percent": round(word_error_rate(texts, judge.transcribe(heard)).wer, 1),
        }
        print(name, rows[name], flush=True)
    what = {name: dataclasses.asdict(disturbance) for name, disturbance in DISTURBANCES.items()}
    made = provenance() | {"command": f"python benchmarks/disturbances.py {given.text.name}"}
    kept = {"made": made, "sentences": len(texts), "disturbances": what, "measured": rows}
    write_text(given.output, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
