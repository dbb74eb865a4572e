"""What units tell of what was said: python benchmarks/units.py CODEBOOK... --text TEXT.tsv --recordings FOLDER...

Each codebook is first shown sentences whose phones are timed (hibari reads the last of the text), so that every unit
gets the phone that it stands for most often. Then it hears others: sentences by hibari and another voice, and the last
recordings of each folder. Units are merged, written as their phones, and compared with the phones of the text: no
language model helps. "other reader" is the edit distance of a sentence's units between hibari and the recording, over
that between the units of two different sentences. Writes results/units.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
from threadpoolctl import threadpool_limits

from sparq.artifacts import provenance, write_text
from sparq.corpus.codebook import load_codebook, load_extractor
from sparq.corpus.readers import read_corpus
from sparq.speech.audio import RATE, load_audio
from sparq.speech.phones import PAUSE, frame_phones, pronounce
from sparq.speech.units import UnitExtractor, merge_repeats
from sparq.speech.voices import load_voice

SHOWN = 150  # sentences by which units get their phones


def distance(a: Sequence[str], b: Sequence[str]) -> tuple[int, int]:
    """Return edits from one to the other, and the length of the first."""
    found = jiwer.process_words(" ".join(a), " ".join(b))
    return found.substitutions + found.deletions + found.insertions, len(a)


def phones_of_units(extractor: UnitExtractor, sentences: Sequence[str]) -> dict[int, str]:
    """Return the phone that is spoken most often during each unit."""
    counts: dict[int, Counter[str]] = {}
    for sentence in sentences:
        said = load_voice("hibari").speak(sentence)
        assert said.phones is not None
        (units,) = extractor.extract([said.waveform])
        for unit, phone in zip(units.tolist(), frame_phones(said.phones, len(units), extractor.encoder), strict=True):
            counts.setdefault(unit, Counter())[phone] += 1
    return {unit: count.most_common(1)[0][0] for unit, count in counts.items()}


def heard(
    extractor: UnitExtractor, names: dict[int, str], speech: Sequence[tuple[str, np.ndarray]], against: str | None
) -> dict[str, float]:
    """Score one set of texts and waveforms."""
    units = [merge_repeats(extractor.extract([waveform])[0])[0].tolist() for _, waveform in speech]
    edits = phones = 0
    for (text, _), its in zip(speech, units, strict=True):
        found = [names.get(unit, PAUSE) for unit in its]
        merged = [a for a, b in zip(found, [None, *found], strict=False) if a not in (b, PAUSE)]
        more, length = distance([phone for phone in pronounce(text) if phone != PAUSE], merged)
        edits, phones = edits + more, phones + length
    seconds = sum(len(waveform) for _, waveform in speech) / RATE
    scores = {
        "phone_error_rate_percent": round(100 * edits / phones, 1),
        "units_per_second": round(sum(map(len, units)) / seconds, 1),
    }
    if against is not None:
        voice = load_voice(against)
        other = [merge_repeats(extractor.extract([voice.speak(text).waveform])[0])[0].tolist() for text, _ in speech]
        same = sum(distance([str(u) for u in a], [str(u) for u in b])[0] for a, b in zip(units, other, strict=True))
        turned = [*other[1:], other[0]]
        differs = sum(distance([str(u) for u in a], [str(u) for u in b])[0] for a, b in zip(units, turned, strict=True))
        scores["other_reader"] = round(same / differs, 3)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("codebooks", nargs="+", help="folders, or names of those that ship")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--recordings", type=Path, nargs="*", default=[])
    parser.add_argument("--count", type=int, default=100, help="of sentences and recordings of each kind")
    parser.add_argument("--voice", default="piper-joe", help="the other voice that reads the text")
    parser.add_argument("--output", type=Path, default=Path("results/units.json"))
    given = parser.parse_args()
    texts = [one.text for one in read_corpus(given.text)]
    read = texts[: given.count]
    speech = {
        voice: [(text, load_voice(voice).speak(text).waveform) for text in read] for voice in ("hibari", given.voice)
    }
    for folder in given.recordings:
        last = list(read_corpus(folder))[-given.count :]
        speech[folder.name] = [(one.text, load_audio(one.audio)) for one in last if one.audio is not None]
    found = {}
    with threadpool_limits(1):
        for name in given.codebooks:
            codebook = load_codebook(name)
            extractor = load_extractor(codebook)
            names = phones_of_units(extractor, texts[-SHOWN:])
            found[Path(name).name] = {
                "size": codebook.size,
                "layers": list(codebook.layers),
                "phonetic": codebook.classifier is not None,
                "speech": {
                    source: heard(extractor, names, its, None if source == "hibari" else "hibari")
                    for source, its in speech.items()
                },
            }
            print(name, json.dumps(found[Path(name).name]))
    made = provenance() | {"what": f"the first {given.count} sentences, and the last {given.count} of each folder"}
    write_text(given.output, json.dumps({"made": made, "codebooks": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
