"""The readers of a corpus, who read texts that nobody said (:mod:`sparq.speech.imagined`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from sparq.corpus.corpus import Corpus
from sparq.errors import UserError
from sparq.speech.imagined import ImaginedReaders, Told

_OFTEN = 200  # utterances of one speaker; those who say less are one reader with all of their source
_ENOUGH = 10_000  # utterances that are learnt from; the places of more phones are hardly others


def load_readers(folder: Path) -> ImaginedReaders:
    """Learn the readers of a corpus: its speakers, each apart from what was disturbed of their speech.

    Raises:
        UserError: not a corpus, its units are not phonetic, or it has no speech with its text.
        ArtifactMismatchError: its codebook is not the one that made its units.
    """
    corpus = Corpus.load(folder)
    table = corpus.table
    spoken = pc.and_(pc.is_valid(table["text"]), pc.greater(table["seconds"], 0.0))  # imagined speech has no seconds
    told = table.filter(pc.and_(pc.equal(table["split"], "train"), spoken))
    if not len(told):
        raise UserError(f"{folder}: has no readers (expected speech with its text to train on)")
    chosen = np.random.default_rng(0).permutation(len(told))[:_ENOUGH]
    rows = told.take(chosen).select(["speaker", "source", "disturbed", "text", "units"]).to_pylist()
    said = Counter(row["speaker"] for row in rows)

    def reader(row: dict[str, Any]) -> str:
        name = row["speaker"] if row["speaker"] and said[row["speaker"]] >= _OFTEN else row["source"]
        return f"disturbed {name}" if row["disturbed"] else name

    utterances = (Told(reader(row), row["text"], np.array(row["units"], np.int64)) for row in rows)
    try:
        return ImaginedReaders.learn(corpus.codebook, utterances)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
