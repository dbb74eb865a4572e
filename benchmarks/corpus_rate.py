"""How many hours of speech a corpus gains an hour, and what takes the time: python benchmarks/corpus_rate.py TEXT.tsv.

Builds a small corpus four times in two processes (one voice; disturbed; in copies; two voices), then measures the parts
by themselves on one thread: each voice, each disturbance, and the units. On a busy machine processor seconds say more
than the clock: two free cores give about twice the rate of a processor second. Writes results/corpus_rate.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from sparq.artifacts import provenance, write_text
from sparq.config import AugmentationConfig, CorpusConfig, SourceConfig, UnitsConfig
from sparq.corpus.build import build_corpus
from sparq.corpus.codebook import load_codebook, load_extractor
from sparq.corpus.readers import read_corpus
from sparq.speech.audio import RATE
from sparq.speech.augmentation import Disturbance, disturb
from sparq.speech.voices import load_voice

ROUGH = AugmentationConfig(
    share=0.8, rates=(0.85, 1.15), room=0.5, noise=0.6, telephone=0.15, clipping=0.1, levels=(-18, 3)
)  # fmt: skip
DISTURBANCES = {
    "rate": Disturbance(rate=1.1),
    "room": Disturbance(reverberation=0.5, direct=3),
    "white noise": Disturbance(noise="white", snr=10),
    "pink noise": Disturbance(noise="pink", snr=10),
    "babble": Disturbance(noise="babble", snr=10),
    "hum": Disturbance(noise="hum", snr=10),
    "telephone": Disturbance(telephone=True),
    "clipping": Disturbance(clipped=0.01),
    "all": Disturbance(1.1, 0.5, 3, "pink", 10, telephone=True, clipped=0.01, level=-6),
}


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def built(text: Path, sentences: int, **settings: Any) -> dict[str, Any]:
    """Build a corpus and say at which rate; starting the processes counts, which a large corpus does not notice."""
    source = SourceConfig(kind="text", path=str(text), limit=sentences, **settings)
    config = CorpusConfig(sources=(source,), units=UnitsConfig(name="codebook"), processes=2)
    begun, used = time.monotonic(), processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        hours = build_corpus(config, Path(folder) / "corpus", quiet=True).statistics["hours"]
    wall, used = time.monotonic() - begun, processor_seconds() - used
    return {
        "hours": round(hours, 3),
        "hours_per_hour_by_the_clock": round(hours * 3600 / wall, 1),
        "hours_per_processor_hour": round(hours * 3600 / used, 1),
    }


def times_real_time(make: Callable[[], object], seconds: float) -> float:
    used = processor_seconds()
    make()
    return round(seconds / (processor_seconds() - used), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--voices", nargs=2, default=["hibari", "piper-joe"])
    parser.add_argument("--output", type=Path, default=Path("results/corpus_rate.json"))
    given = parser.parse_args()
    first, second = given.voices
    result: dict[str, Any] = {
        "what": "hours of speech made into units an hour; the machine was shared with other work",
        "made": provenance() | {"command": f"python benchmarks/corpus_rate.py {given.text.name}"},
        "two_processes": {
            first: built(given.text, given.sentences, voices=(first,)),
            f"{first}, disturbed": built(given.text, given.sentences, voices=(first,), augmentation=ROUGH),
            f"{first}, disturbed, 3 copies": built(
                given.text, given.sentences // 3, voices=(first,), augmentation=ROUGH, copies=3
            ),
            f"{first} and {second}, disturbed": built(
                given.text, given.sentences, voices=(first, second), augmentation=ROUGH
            ),
        },
    }
    texts = [recording.text for recording in read_corpus(given.text)][:40]
    with threadpool_limits(1):
        voice = load_voice(first)
        said = [voice.speak(text).waveform for text in texts]
        seconds = sum(map(len, said)) / RATE
        extractor = load_extractor(load_codebook("codebook"))
        parts = {
            "voice " + first: times_real_time(lambda: [voice.speak(text) for text in texts], seconds),
            "units": times_real_time(lambda: extractor.extract(said), seconds),
        }
        for name, disturbance in DISTURBANCES.items():
            parts[name] = times_real_time(
                lambda what=disturbance: [disturb(wave, what, said[:8]) for wave in said], seconds
            )
    result["times_real_time_by_processor_seconds"] = parts
    print(json.dumps(result, indent=1))
    write_text(given.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
