"""What a pretrained language model forgets of text as it learns to listen and speak, by how much text it is shown.

    python benchmarks/text_kept.py smollm2-135m --corpus runs/mine --text book.txt ljspeech_test.tsv \
        --shares 0 0.1 0.3 --output results/text_kept.json steps=3000

CORPUS is a corpus folder; MODEL a transformers folder, a hub name, or the name of one that travels in a package. For
each share the model is adapted anew (ASR and TTS have the rest in halves), and its perplexity of plain text is compared
with that of the model before. Settings at the end are those of the adaptation.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from sparq.adaptation.start import pretrained_model
from sparq.artifacts import provenance, write_text
from sparq.assets import language_model
from sparq.attention import install, load_pretrained
from sparq.config import AdaptationConfig, AttentionConfig, VocabularyConfig
from sparq.corpus.corpus import Corpus
from sparq.device import usual_device
from sparq.evaluation.perplexity import perplexity
from sparq.evaluation.scoring import task_losses
from sparq.evaluation.texts import lines_of, windows
from sparq.language.folder import load_language_model
from sparq.language.tasks import Example
from sparq.language.vocabulary import Vocabulary
from sparq.making import adapt_model, learn_vocabulary
from sparq.schema import parse, with_overrides

DEFAULTS: dict[str, Any] = {
    "method": "lora",
    "lora": {"rank": 64, "alpha": 64},
    "learning_rate": 5e-4,
    "batch_bins": 2000,
    "save_every": 1_000_000,  # nothing is kept
}


def text_perplexities(model: PreTrainedModel, texts: dict[str, list[Example]]) -> dict[str, float]:
    return {name: round(perplexity(model, examples).perplexity, 3) for name, examples in texts.items()}


def adapted(name: str, corpus: Corpus, vocabulary: Vocabulary, sink: str, config: AdaptationConfig) -> Any:
    """The model after its adaptation, and how it went."""
    model = pretrained_model(name, vocabulary, config.seed, corpus.utterances("train"))
    install(model, **AttentionConfig().arguments(sink))
    before = load_language_model(name, "MODEL") if config.text_targets == "model" else None
    work = Path(tempfile.mkdtemp())
    try:
        return adapt_model(
            model, corpus, vocabulary, config, work, lambda *_: None, measure=lambda _: {}, before=before
        )
    finally:
        shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="texts that are not trained on")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.3], help="of textLM among the tasks")
    parser.add_argument("--sink", default="none")
    parser.add_argument("--pieces", type=int, default=1000, help="speech pieces of the vocabulary")
    parser.add_argument("--length", type=int, default=256, help="pieces in a sequence of plain text")
    parser.add_argument("--sequences", type=int, default=16, help="of each text")
    parser.add_argument("--output", type=Path, default=Path("results/text_kept.json"))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_intermixed_args()
    corpus, path = Corpus.load(given.corpus), language_model(given.model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = {one.stem: windows(tokenizer, lines_of(one), given.length)[: given.sequences] for one in given.text}
    config = VocabularyConfig(mode="extend", size=given.pieces, normalisation="none")
    vocabulary = learn_vocabulary(corpus, config, tokenizer)
    before = text_perplexities(load_pretrained(path, dtype=torch.float32).to(usual_device()), texts)
    print(json.dumps({"before": before}), flush=True)
    found: dict[str, Any] = {
        "what": "perplexity of plain text before and after an adaptation, by the share of textLM in it; losses of the "
        "tasks on what the corpus holds out, nats a piece",
        "made": provenance(),
        "settings": {name: str(value) for name, value in vars(given).items() if name != "output"},
        "before": before,
        "after": [],
    }
    for share in given.shares:
        weights = {"textlm": share, "speechlm": 0.0, "asr": (1 - share) / 2, "tts": (1 - share) / 2}
        data = with_overrides({**DEFAULTS, "task_weights": weights}, given.settings)
        start = time.monotonic()
        training = adapted(path, corpus, vocabulary, given.sink, parse(AdaptationConfig, data, "text_kept"))
        after = text_perplexities(training.model, texts)
        row = {
            "share": share,
            "steps": training.steps,
            "seconds": round(time.monotonic() - start),
            "text perplexity": after,
            "times that before": {name: round(after[name] / before[name], 4) for name in after},
            "held out": {
                name: round(value, 4)
                for name, value in task_losses(training.model, vocabulary, corpus.utterances("held_out")).items()
            },
        }
        print(json.dumps(row), flush=True)
        found["after"].append(row)
        write_text(given.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
