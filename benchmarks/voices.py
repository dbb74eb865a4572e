"""How well a judge understands each voice, and how fast it is: python benchmarks/voices.py TEXT.tsv [VOICE ...].

Every voice that is installed, or those named, reads the same sentences on one thread; the judge (Moonshine tiny)
transcribes them, and its word error rate by Whisper's English normaliser says how intelligible the voice is. Goes on
where it was when it is started again. Writes results/voices.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import psutil
from threadpoolctl import threadpool_limits

from sparq.artifacts import provenance, write_text
from sparq.corpus.readers import read_corpus
from sparq.errors import UserError
from sparq.evaluation.recognition import word_error_rate
from sparq.speech.audio import RATE
from sparq.speech.recogniser import load_recogniser
from sparq.speech.voices import load_voice, voice_names


def cpu_seconds() -> float:
    """Processor seconds of this process and of those it started; of those that have ended, the user's alone."""
    process = psutil.Process()
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times) + process.cpu_times().children_user


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("voices", nargs="*")
    parser.add_argument("--sentences", type=int, default=25)
    parser.add_argument("--output", type=Path, default=Path("results/voices.json"))
    given = parser.parse_args()
    texts = [recording.text for recording in read_corpus(given.text)][: given.sentences]
    rows = json.loads(given.output.read_text())["voices"] if given.output.exists() else {}
    judge = load_recogniser()
    for name in given.voices or voice_names():
        if name in rows:
            continue
        try:
            voice = load_voice(name)
        except UserError as error:
            print(error)
            continue
        voice.speak("Good morning.")  # what is loaded at the first word is no part of the speed
        begun, cpu = time.monotonic(), cpu_seconds()
        said = [voice.speak(text) for text in texts]
        wall, cpu = time.monotonic() - begun, cpu_seconds() - cpu
        seconds = sum(len(utterance.waveform) for utterance in said) / RATE
        heard = judge.transcribe([utterance.waveform for utterance in said])
        rows[name] = {
            "sentences": len(texts),
            "judge_wer_percent": round(word_error_rate(texts, heard).wer, 1),
            "seconds_of_speech": round(seconds, 1),
            "times_real_time_by_the_clock": round(seconds / wall, 1),
            "times_real_time_by_processor_seconds": round(seconds / cpu, 1),
            "word_times": any(utterance.words for utterance in said),
        }
        print(name, rows[name], flush=True)
        made = provenance() | {"command": f"python benchmarks/voices.py {given.text.name}"}
        what = f"the first sentences of {given.text.name}, one thread; the machine was shared with other work"
        write_text(given.output, json.dumps({"made": made, "what": what, "voices": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
