"""General text: sentences that a model repeats while it learns a voice, and others that show whether it forgot any.

They are those of the recipe "demo" (LJ Speech, public domain); its last 40 are in the training of no model that ships.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from sparq.assets import resolve
from sparq.corpus.readers import read_corpus
from sparq.corpus.utterance import Utterance
from sparq.finetuning.recordings import sentence_key

TEXT = "sparq:recipes/demo.tsv"
HELD_OUT = 40  # at its end


@dataclasses.dataclass(frozen=True)
class GeneralText:
    """Text that has nothing to do with the recordings.

    Attributes:
        rehearsed: to learn from.
        held_out: to measure on.
    """

    rehearsed: tuple[Utterance, ...] = ()
    held_out: tuple[Utterance, ...] = ()


def general_text(learnt: Iterable[str], held_out: Iterable[str]) -> GeneralText:
    """Read the sentences, without those that the recordings hold too; nothing where this installation lacks them.

    Args:
        learnt: transcripts that the model learns from: none of them is measured on.
        held_out: transcripts that are held out: none of them is rehearsed.
    """
    if not resolve(TEXT).is_file():
        return GeneralText()
    texts = [recording.text or "" for recording in read_corpus(resolve(TEXT))]
    return GeneralText(
        _without(texts[:-HELD_OUT], held_out),
        _without(texts[-HELD_OUT:], learnt),
    )


def _without(texts: Iterable[str], others: Iterable[str]) -> tuple[Utterance, ...]:
    known = {sentence_key(text) for text in others}
    return tuple(Utterance(text, np.zeros(0, np.int64)) for text in texts if sentence_key(text) not in known)
