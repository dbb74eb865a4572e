"""Fine-tune the model that ships on parts of corpora, by each method, and keep what that changed on a test part.

    python benchmarks/finetune.py prompts --learnt 150 --tested 60 --runs runs/finetune --output results/finetune.json
    python benchmarks/finetune.py data/text/ljspeech_test.tsv --voice kokoro-am_puck --learnt 120 --tested 50 \
        --runs runs/finetune --output results/finetune.json

Of a corpus without speakers the first recordings are learnt from and the last ones are the test; of one with speakers
every fifth speaker is the test, and the others are learnt from. What is held out for early stopping is another part
again. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from pathlib import Path

from sparq.artifacts import provenance, write_text
from sparq.assets import DEFAULT_MODEL, shipped
from sparq.corpus.readers import Recording, read_corpus
from sparq.corpus.utterance import Utterance
from sparq.finetuning.defaults import adaptation_config
from sparq.finetuning.finetune import FineTuning
from sparq.finetuning.outcome import table
from sparq.finetuning.recordings import look_at
from sparq.finetuning.rehearsal import general_text
from sparq.finetuning.scores import score
from sparq.language.speech_lm import SpeechLM
from sparq.making import Watcher
from sparq.progress import Terminal
from sparq.speech.audio import load_audio, save_audio
from sparq.speech.level import levelled
from sparq.speech.voices import load_voice

EVERY = 5  # speaker is one of the test
WHAT = (
    "Readers whom the base model never heard: the woman of Asterisk's core sounds (package "
    "asterisk-core-sounds-en-wav, CC BY-SA, telephone band; prompts of three words or more without digits and sounds, "
    "in random order; some wordings recur in the test), and a synthetic man (kokoro-am_puck) who reads LJ Speech test "
    "sentences, which nothing learnt from, and Kathleen's prompts, the first 1,000 of which the base model knows from "
    "her. No test recording is in what was fine-tuned on or stopped by."
)


def parted(recordings: list[Recording], learnt: int, tested: int) -> tuple[list[Recording], list[Recording]]:
    """What is learnt from, and what is tested."""
    speakers = sorted({one.speaker for one in recordings if one.speaker is not None})
    if not speakers:
        return recordings[:learnt], recordings[-tested:]
    others = set(speakers[::EVERY])
    test = [one for one in recordings if one.speaker in others]
    learn = [one for one in recordings if one.speaker not in others]
    return random.Random(0).sample(learn, learnt), random.Random(0).sample(test, min(tested, len(test)))


def voiced(recordings: list[Recording], voice: str, folder: Path) -> list[Recording]:
    """Let a voice read the transcripts; what it has read before is kept."""
    speaker, spoken = load_voice(voice), []
    folder.mkdir(parents=True, exist_ok=True)
    for seed, one in enumerate(recordings):
        audio = folder / f"{one.id}.wav"
        if not audio.is_file():
            save_audio(audio, speaker.speak(one.text, 1.0, seed).waveform)
        spoken.append(dataclasses.replace(one, audio=audio))
    return spoken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", type=Path)
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--learnt", type=int, default=300, help="recordings")
    parser.add_argument("--tested", type=int, default=132, help="recordings, at most")
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--voice", help="reads the transcripts in the place of who is recorded")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    kept = {"corpora": json.loads(given.output.read_text())["corpora"] if given.output.is_file() else {}}
    base = shipped(DEFAULT_MODEL)

    def keep() -> None:
        write_text(given.output, json.dumps({"what": WHAT, "made": provenance(), **kept}, indent=1) + "\n")

    for path in given.corpora:
        learn, test = parted(list(read_corpus(path, audio=not given.voice)), given.learnt, given.tested)
        name = f"{path.stem}-{given.voice}" if given.voice else path.name
        folder = given.runs / name
        if given.voice:
            spoken = voiced([*learn, *test], given.voice, folder / "wavs")
            learn, test = spoken[: len(learn)], spoken[len(learn) :]
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {"id": one.id, "audio": str(one.audio.resolve()), "text": one.text, "speaker": one.speaker} for one in learn
        ]
        listed = folder / f"{name}.jsonl"
        write_text(listed, "".join(json.dumps(row) + "\n" for row in rows))
        recordings = look_at(listed)
        lm = SpeechLM.load(base)
        units = lm.extractor.extract([levelled(load_audio(one.audio)) for one in test])  # as listening does
        tested = [Utterance(one.text, raw) for one, raw in zip(test, units, strict=True)]
        general = general_text((one.text for one in learn), ()).held_out
        found = kept["corpora"].setdefault(name, {"minutes": round(recordings.minutes, 1), "tested": len(test)})

        def measured(folder: Path, tested: list[Utterance] = tested, general: tuple[Utterance, ...] = general) -> dict:
            scores = score(SpeechLM.load(folder), tested, general, given.beam)
            return {name: round(value, 3) for name, value in dataclasses.asdict(scores).items()}

        if "before" not in found:
            found["before"] = measured(base)
            keep()
        for method in given.methods:
            made = "-".join([method, *given.settings])
            if made in found:
                continue
            begun = time.process_time()
            with Terminal() as terminal:
                watcher = Watcher(terminal.stage, terminal.training, terminal.note)
                config = adaptation_config(method, recordings.seconds, given.settings)
                output = folder / made.replace("=", "-")
                outcome = FineTuning(listed, recordings, base, config, output, beam=given.beam, watcher=watcher).run()
            print(table(outcome), flush=True)
            found[made] = {
                "test": measured(output),
                "held_out": [dataclasses.asdict(one) for one in (outcome.before, outcome.after)],
                "settings": dict(outcome.settings),
                "steps": outcome.steps,
                "kept": outcome.kept,
                "training_minutes": round(outcome.training_minutes, 2),
                "cpu_minutes_in_all": round((time.process_time() - begun) / 60, 2),
            }
            print(name, made, found["before"], found[made]["test"], flush=True)
            keep()


if __name__ == "__main__":
    main()
