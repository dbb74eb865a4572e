"""Fine-tuning on one's own recordings: ``sparq finetune``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from sparq.commands.arguments import (
    add_command,
    add_model,
    add_overwrite,
    add_settings,
    model_folder,
    positive,
    print_json,
)
from sparq.config import FINETUNING_METHODS


def add_finetune(made: Any) -> None:
    """Declare ``sparq finetune``."""
    text = "Fine-tune a SpeechLM on your own recordings and their transcripts, and say what that changed"
    command = add_command(made, "finetune", finetune, text, resumes=True)
    command.add_argument("folder", help="recordings with transcripts, in any layout that sparq corpus knows")
    command.add_argument("-o", "--output", required=True, help="the new SpeechLM's folder")
    add_overwrite(command)
    text = "adapters (lora), the same on frozen weights of 8 or 4 bits, or all weights"
    command.add_argument("--method", choices=FINETUNING_METHODS, default=FINETUNING_METHODS[0], help=text)
    text = "different sentences kept to measure on (default: a tenth, from 8 to 100)"
    command.add_argument("--held-out", type=positive, help=text)
    command.add_argument("--beam", type=positive, default=4, help="width of the beam search that is measured with")
    add_model(command)
    add_settings(command, "the adaptation, such as steps=200 learning_rate=5e-4")


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
            overwrite=given.overwrite,
            watcher=watcher,
        )
        outcome = tuning.run()
    if given.json:
        print_json({"model": str(output), **dataclasses.asdict(outcome)})
        return
    print(table(outcome))
    print(f"{output}: sparq transcribe --model {output} FILE")
