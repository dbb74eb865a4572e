"""Adapt SmolLM2-135M, or another causal language model, to the four tasks on a GPU, a few minutes at a call.

    python gpu/train_smollm2.py --corpus corpus --model SmolLM2-135M-Instruct.Q4_1.gguf --sink max \
        --state /tmp/smollm2 --steps 12000 --minutes 8

Call it again with the same arguments until it says that it is done: every call goes on from the last checkpoint under
``--state``, which lies outside the working tree. The corpus needs no audio, so it is small. ``KEY=VALUE`` at the end
changes the adaptation (``sparq.config.AdaptationConfig``), such as ``method=full learning_rate=1e-4``.

At the end ``STATE/SINK/speechlm`` is a folder that ``sparq.load`` reads (half precision, adapters merged), and
``STATE/SINK/parts`` the same in parts that ``gpu/carry.py unpack`` joins. Each call leaves the log in ``--out``
(default ``$OUT``), and the last one as many parts as fit; the others are copied by calls of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from carry import pack
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparq.adaptation.start import pretrained_model
from sparq.adaptation.training import HISTORY, Training, adapt, last_checkpoint
from sparq.artifacts import new_folder, require_match, write_text
from sparq.assets import shipped
from sparq.attention import install
from sparq.config import SINKS, AdaptationConfig, AttentionConfig, VocabularyConfig
from sparq.corpus.corpus import Corpus
from sparq.errors import SparqError, UserError
from sparq.evaluation.scoring import live_measure
from sparq.language.folder import load_language_model
from sparq.language.speech_lm import SpeechLM
from sparq.language.vocabulary import Vocabulary, load_vocabulary
from sparq.making import example_stream, learn_vocabulary
from sparq.schema import parse, with_overrides
from sparq.speech.vocoder import Vocoder

# Where training starts to be tried from; LoRA's targets, alpha / rank and dropout are the paper's (E.1).
DEFAULTS: dict[str, Any] = {
    "method": "lora",
    "lora": {"rank": 64, "alpha": 64},
    "learning_rate": 5e-4,
    "schedule": "linear",
    "warmup_steps": 300,
    "batch_bins": 16000,
    "task_weights": {"textlm": 0.15, "speechlm": 0.1, "asr": 0.45, "tts": 0.3},
    "text_targets": "model",
    "curriculum": {"words": 2, "longest": 18, "batches": 1000, "spans": 0.25},
    "save_every": 250,
}
PART = 7.5  # MiB
PARTS_AT_ONCE = 8  # of them leave with one call


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus folder, built without --keep-audio")
    parser.add_argument("--model", type=Path, required=True, help="a transformers folder, or a .gguf file")
    parser.add_argument("--state", type=Path, required=True, help="folder for all that later calls need")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder for results (default $OUT)")
    parser.add_argument("--sink", choices=SINKS, default="max")
    parser.add_argument("--start", type=Path, help="a SpeechLM of this vocabulary to begin with (default: the model)")
    parser.add_argument("--vocabulary", type=Path, help="a ready vocabulary (default: learn one, mode extend)")
    parser.add_argument("--pieces", type=int, default=1000, help="speech pieces of the vocabulary that is learnt")
    parser.add_argument("--vocoder", type=Path, help="a vocoder for the codebook (default: the one that ships)")
    parser.add_argument("--steps", type=int, required=True, help="steps in all, over all calls")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training in this call (default 8)")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the adaptation")
    given = parser.parse_intermixed_args()
    if given.out is None:
        parser.error("--out: missing ($OUT is not set)")
    return given


def plain_model(path: Path, state: Path) -> Path:
    """Give a transformers folder; a GGUF file is written as one, once."""
    if path.suffix != ".gguf":
        return path
    folder = state / "model"
    if not folder.is_dir():
        with new_folder(folder) as made:
            AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(made)
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(made)
    return folder


def vocabulary_of(given: argparse.Namespace, corpus: Corpus, model: Path) -> Vocabulary:
    """Load a vocabulary, or learn the speech pieces that are put behind the model's own."""
    folder = given.vocabulary or given.state / "vocabulary"
    if not folder.is_dir():
        # Text as the model has read it so far.
        config = VocabularyConfig(mode="extend", size=given.pieces, normalisation="none")
        learnt = learn_vocabulary(corpus, config, AutoTokenizer.from_pretrained(model))
        with new_folder(folder) as made:
            learnt.save(made)
    return load_vocabulary(folder)


def require_same_start(given: argparse.Namespace, corpus: Corpus) -> None:
    """Refuse to go on, in the state of one model and corpus, with another.

    Raises:
        UserError: naming what is another.
    """
    path = given.state / "begun.json"
    told = {"model": str(given.model), "corpus": corpus.fingerprint}
    if not path.is_file():
        write_text(path, json.dumps(told) + "\n")
    for name, value in json.loads(path.read_text(encoding="utf-8")).items():
        if told[name] != value:
            raise UserError(f"--state: {given.state} was begun with the {name} {value}, not {told[name]}; name another")


def settings_of(given: argparse.Namespace, folder: Path) -> AdaptationConfig:
    """Read the settings; the training ends after the minutes of earlier calls and of this one."""
    precision = "bfloat16" if torch.cuda.is_available() else "float32"
    data = with_overrides({**DEFAULTS, "precision": precision, "steps": given.steps}, given.settings)
    config = parse(AdaptationConfig, data, "train_smollm2")
    checkpoint = last_checkpoint(folder)
    earlier = 0.0
    if checkpoint:
        log = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        earlier = max((entry.get("seconds", 0.0) for entry in log), default=0.0)
    return dataclasses.replace(config, minutes=earlier / 60 + given.minutes)


def train(given: argparse.Namespace, corpus: Corpus, vocabulary: Vocabulary, model: Path, folder: Path) -> Training:
    """Train for the minutes of this call. Checkpoints stay, which is why this is not ``making.adapt_model``."""
    config = settings_of(given, folder)
    if given.start:
        begun = SpeechLM.load(given.start)
        require_match("--start (its vocabulary)", begun.vocabulary.fingerprint, vocabulary.fingerprint)
        network = begun.model.float()
    else:
        network = pretrained_model(model, vocabulary, config.seed, corpus.utterances("train"))
    install(network, **AttentionConfig().arguments(given.sink))
    stream = example_stream(network, corpus, vocabulary, config)
    held_out = corpus.utterances("held_out")
    began = time.monotonic()

    def report(step: int, _share: float, logged: Any) -> None:
        if step % 100 == 0:
            numbers = " ".join(f"{name} {value:.3g}" for name, value in sorted(logged.items()))
            print(f"step {step} of {given.steps}, {time.monotonic() - began:.0f} s: {numbers}", flush=True)

    measure = live_measure(vocabulary, held_out) if held_out else None
    before = load_language_model(model, "--model") if config.text_targets == "model" else None
    return adapt(network, stream, config, folder, measure=measure, report=report, before=before)


def finish(given: argparse.Namespace, lm: SpeechLM, folder: Path) -> None:
    """Write the SpeechLM, and its parts for the way home."""
    lm.save(folder / "speechlm", half=True, complete=False)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    count = pack(folder / "speechlm", folder / "parts", PART)
    for index in range(min(count, PARTS_AT_ONCE - 2)):  # beside the history and the checksum
        shutil.copy(folder / "parts" / f"{index:04d}", given.out)
    shutil.copy(folder / "parts" / "checksum", given.out)
    print(f"done: {folder / 'speechlm'}, {count} parts in {folder / 'parts'}")


def main() -> int:
    given = arguments()
    folder = given.state / given.sink
    folder.mkdir(parents=True, exist_ok=True)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        corpus = Corpus.load(given.corpus)
        vocoder = Vocoder.load(given.vocoder or shipped("vocoder"))  # a part that does not fit is told before training
        require_match("the vocoder (its codebook)", vocoder.codebook, corpus.codebook.meaning)
        require_same_start(given, corpus)
        model = plain_model(given.model, given.state)
        vocabulary = vocabulary_of(given, corpus, model)
        training = train(given, corpus, vocabulary, model, folder / "training")
        shutil.copy(folder / "training" / HISTORY, given.out / f"history-{given.sink}.json")
        if training.steps >= given.steps:
            finish(given, SpeechLM(training.model.cpu(), vocabulary, corpus.codebook, vocoder), folder)
        else:
            print(f"step {training.steps} of {given.steps}: call again with the same arguments")
    except SparqError as error:
        print(f"train_smollm2: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
