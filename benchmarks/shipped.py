"""Score the models and the vocoder that ship, source by source of a corpus that they never saw, and keep the numbers.

    python benchmarks/shipped.py runs/small-trunk/corpus test test/phrases kathleen --sentences 200 \
        --output results/shipped_models.json
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from sparq.artifacts import provenance, write_text
from sparq.assets import shipped
from sparq.config import EvaluationConfig
from sparq.corpus.corpus import Corpus
from sparq.corpus.utterance import Utterance
from sparq.evaluation import word_error_rate
from sparq.evaluation.resynthesis import speak_units, spoken_word_errors
from sparq.evaluation.scoring import Assessment, assess
from sparq.language.listening import LISTENING_IN_VIEWS
from sparq.language.prior import TextPrior
from sparq.language.speech_lm import SPEAKING, SpeechLM
from sparq.speech.recogniser import Recogniser, load_recogniser
from sparq.speech.vocoder import Vocoder

SINKS = ("none", "max", "zero")


def told(assessment: Assessment, views: int) -> dict[str, object]:
    """What is kept of an assessment: every number, and none of the texts."""
    return {
        "utterances": assessment.asr.utterances,
        "views": views,
        **{name: round(value, 2) for name, value in dataclasses.asdict(assessment.scores).items()},
        "asr_words": assessment.asr.words,
        "next_token_accuracy": {task: round(value, 2) for task, value in assessment.accuracy.items()},
        "outliers": {
            kind: {
                "maximum_infinity_norm": round(report.maximum_infinity_norm, 2),
                "average_kurtosis": round(report.average_kurtosis, 2),
            }
            for kind, report in assessment.outliers.items()
        },
    }


def resynthesis(vocoder: Vocoder, utterances: Sequence[Utterance], judge: Recogniser) -> dict[str, float]:
    """Word error rate of the judge on real units spoken by the vocoder, as they are and merged."""
    texts = [one.text for one in utterances]
    spoken = speak_units(vocoder, [one.units for one in utterances])
    return {name: round(wer, 2) for name, wer in spoken_word_errors(spoken, texts, judge).items()}


def measure(folder: Path, source: str, corpus: Path, sentences: int, beam: int, prior: str) -> dict[str, object]:
    """Score one model on one source, on one thread; listening by itself, and with a prior, too."""
    torch.set_num_threads(1)
    held_out = Corpus.load(corpus).utterances("held_out", [source])
    config = EvaluationConfig(sentences=sentences, beam=beam, draws=SPEAKING.draws)
    lm = SpeechLM.load(folder)
    found = told(assess(lm, held_out, load_recogniser(), config), 1 + len(held_out[0].views))
    lm.prior, heard = TextPrior.load(prior), held_out[:sentences]
    texts = lm.write_down([one.units for one in heard], views=[one.views for one in heard])
    return found | {"asr_wer_with_prior": round(word_error_rate([one.text for one in heard], texts).wer, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--models", default="speechlm-{sink}", help="a shipped name or a folder, with {sink} in it")
    parser.add_argument("--sentences", type=int, default=200, help="of each source, at most")
    parser.add_argument("--beam", type=int, default=LISTENING_IN_VIEWS.beams, help="scored by all of a corpus' views")
    parser.add_argument("--prior", default="smollm2-135m", help="the language model that it listens with, too")
    parser.add_argument("--processes", type=int, default=2, help="models at work side by side")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    corpus, judge = Corpus.load(given.corpus), load_recogniser()
    names = {sink: given.models.replace("{sink}", sink) for sink in SINKS}
    folders = {sink: Path(name) if Path(name).is_dir() else shipped(name) for sink, name in names.items()}
    how = given.sentences, given.beam, given.prior
    measured: dict[str, dict[str, object]] = {source: {} for source in given.sources}
    resynthesised: dict[str, dict[str, float]] = {}
    kept = {
        "made": provenance(),
        "beam": given.beam,
        "prior": given.prior,
        "sources": measured,
        "resynthesis_wer": resynthesised,
    }
    with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
        asked = [
            (source, sink, pool.submit(measure, folders[sink], source, given.corpus, *how))
            for source, sink in itertools.product(given.sources, SINKS)
        ]
        for source, sink, answer in asked:
            measured[source][sink] = found = answer.result()
            heard = f"{found['asr_wer']} ({found['asr_wer_with_prior']} with the prior)"
            print(f"{sink:5} {source:16} WER % of ASR {heard}, of TTS {found['tts_wer']}", flush=True)
            write_text(given.output, json.dumps(kept, indent=1) + "\n")
    vocoder = Vocoder.load(shipped("vocoder"))
    for source in given.sources:
        held_out = corpus.utterances("held_out", [source])[: given.sentences]
        resynthesised[source] = resynthesis(vocoder, held_out, judge)
        print("resynthesis WER %", source, resynthesised[source], flush=True)
        write_text(given.output, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
