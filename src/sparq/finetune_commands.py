"""What ``sparq finetune`` does: read what was given, call one function, print."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from sparq.commands import model_folder, print_json


def finetune(given: argparse.Namespace) -> None:
    """Fine-tune a SpeechLM on a folder of recordings."""
    from sparq.corpus.corpus import Corpus
    from sparq.finetuning.defaults import adaptation_config
    from sparq.finetuning.finetune import FineTuning
    from sparq.finetuning.outcome import table
    from sparq.finetuning.recordings import is_corpus, look_at, look_at_corpus
    from sparq.making import Watcher
    from sparq.progress import Terminal

    folder, output = Path(given.folder), Path(given.output)
    recordings = look_at_corpus(Corpus.load(folder)) if is_corpus(folder) else look_at(folder)
    adaptation = adaptation_config(given.method, recordings.seconds, given.settings)
    with Terminal(quiet=given.json) as terminal:
        watcher = Watcher(terminal.stage, terminal.training, terminal.note)
        tuning = FineTuning(
            folder,
            recordings,
            model_folder(given),
            adaptation,
            output,
            held_out=given.held_out,
            beam=given.beam,
            watcher=watcher,
        )
        outcome = tuning.run()
    if given.json:
        print_json({"model": str(output), **dataclasses.asdict(outcome)})
        return
    print(table(outcome))
    print(f"{output}: sparq transcribe --model {output} FILE")
