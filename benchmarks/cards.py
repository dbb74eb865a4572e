"""Write the cards of the models that ship: python benchmarks/cards.py.

Numbers come from results/shipped_models.json, commands and dates from the folders themselves; what is said here in
words has to be changed when others are trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparq.artifacts import read_manifest, write_text
from sparq.language.card import CARD, Card, model_card
from sparq.language.listening import LISTENING_WITH_PRIOR

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "src" / "sparq" / "weights"
ATTENTION = {
    "none": "the ordinary softmax",
    "max": "outlier-free attention, max-shift as the paper prints it (sink logit: the row's maximum)",
    "zero": "outlier-free attention, softmax_1 (sink logit: 0)",
}
COLUMNS = {
    "test": "LJ Speech test sentences, voiced",
    "test/phrases": "phrases, voiced",
    "unseen": "sentences by two voices never heard",
    "kathleen": "read by a human",
}
MEASURES = {
    "word error rate of ASR, %": "asr_wer",
    "the same, with a prior, %": "asr_wer_with_prior",
    "word error rate of TTS, %": "tts_wer",
    "text perplexity": "text_perplexity",
    "speech perplexity": "speech_perplexity",
}


def card(sink: str, kept: dict[str, Any]) -> Card:
    found = {source: kept["sources"][source][sink] for source in COLUMNS if source in kept["sources"]}
    counts = ", ".join(f"{scores['utterances']} {COLUMNS[source]}" for source, scores in found.items())
    made = read_manifest(WEIGHTS / f"speechlm-{sink}", "speechlm").made
    return Card(
        title=f"SpARQ speechlm-{sink}",
        summary=(
            "A language model of 4.3 million parameters that listens, speaks and writes English, with "
            f"{ATTENTION[sink]}. It was made to try the method on a laptop, not to transcribe meetings."
        ),
        licence="apache-2.0",
        licence_note=(
            "Of what it learnt from, sentences of LibriTTS and VCTK are CC BY 4.0, those of LJ Speech in the public "
            "domain as the novels and the addresses are, recordings of Kathleen CC0 and of AN4 under a BSD-style "
            "licence; what WordNet says of words is used under its own (WordNet 3.1, Princeton University). The "
            "encoder (Moonshine, MIT) and the judge are not part of it."
        ),
        usage=[f"sparq transcribe recording.wav --model speechlm-{sink}", "sparq speak 'It is late.' -o late.wav"],
        data={
            "speech": "60 hours: sentences of LJ Speech, VCTK and LibriTTS and phrases cut out of them, read aloud by "
            "the voices hibari and flite at three speeds, by 26 of Kokoro's speakers and by Piper's joe; the "
            "recordings of Kathleen and AN4, in six copies; half of it disturbed (rooms, noise, telephone). Then 72 "
            "more: sentences of eleven old novels (39 hours), words out of a dictionary (12), some of the former; at "
            "last 17 hours of all of these and new sentences of LibriTTS by the same voices",
            "read in imagination": "1.7 million words, as the readers of the last 17 hours would have said them, to be "
            "understood alone: more novels and addresses of presidents, WordNet's examples and glosses "
            "(benchmarks/free_texts.py), words out of a dictionary, and sentences of the former texts",
            "units": "Moonshine tiny, layers 3 to 6, phonetic with a refined classifier, 100 clusters, runs merged; "
            "refined a second time before the last 17 hours",
            "vocabulary": "1,000 SentencePiece pieces over letters and units",
            "never trained on": "LJ Speech test sentences, Kathleen's last 132 prompts",
        },
        method={
            "model": "Llama kind, 6 layers of 256, 8 heads, from nothing",
            "trunk": "27 million pieces of the four tasks with the ordinary softmax, Muon, phrases first, in the "
            "second half units changed as other readers would; then, of the later hours, 2.8 million and, each from "
            "the mean that had been made by then, 6.3 million and (of 115 of all hours) 5.3 million",
            "branches": "of 60 hours 1.6 million pieces, of the later ones 1.25 and 0.85 million, of all 0.85, each "
            "with its own attention, learning rate falling to 0",
            "then": "the mean of the four branches; each went on for 1.9 million pieces, 12 of the last 17 hours among "
            "them five times, and the mean of before and after was taken",
            "read in imagination": "9 million pieces with max-shift, two thirds of what was listened to read in "
            "imagination; what that changed was added to the other two, which went on for 0.6 million with their own "
            "attention; a third of the weights before and two thirds of these were averaged",
            "at last": "7.7 million such pieces more with max-shift; 0.6 of what that changed was added to all three, "
            "which went on for 0.55 million with their own attention; the mean of these and the weights before ships "
            "(sparq export --average)",
        },
        columns=[COLUMNS[source] for source in found],
        measured={name: [scores[key] for scores in found.values()] for name, key in MEASURES.items()},
        measured_on=(
            f"On {counts}; a beam of {kept['beam']} that four views score together to listen, one of "
            f"{LISTENING_WITH_PRIOR.beams} with {kept['prior']} as a prior, the best heard of five draws to speak; the "
            "judge of speech is Moonshine tiny."
        ),
        limits=[
            "It learnt mostly from synthetic voices and read sentences; free conversation it understands badly.",
            "Prompts of one woman on the telephone: max mishears 31 %, 24 % with the prior (Moonshine tiny 10 %).",
            "Stretches of speech of at most 9 seconds; longer recordings are cut at pauses.",
            "The text that it writes by itself is that of a very small model, and may be wrong or unfit.",
            "English alone, without capitals and punctuation.",
        ],
        made={name: made[name] for name in ("command", "commit", "machine", "date")},
    )


def main() -> None:
    kept = json.loads((ROOT / "results" / "shipped_models.json").read_text(encoding="utf-8"))
    for sink in ATTENTION:
        write_text(WEIGHTS / f"speechlm-{sink}" / CARD, model_card(card(sink, kept)))


if __name__ == "__main__":
    main()
