"""Word error rate, the measure of ASR and, through vocoder and judge, of TTS (paper, section 4.1 and appendix E.3).

Both sides pass through Whisper's English normaliser as it is in transformers. Its table of British and American
spellings, which transformers fetches with a Whisper tokenizer, comes from the package ``whisper-normalizer``, so that
scores are the same without a model hub.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from importlib import resources

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from sparq.errors import UserError


@dataclasses.dataclass(frozen=True)
class WordErrors:
    """Errors of a set of hypotheses.

    Attributes:
        wer: word error rate in percent of ``words``; above 100 where much was inserted.
        substitutions: words taken for another.
        deletions: words missed.
        insertions: words made up.
        words: words in the references, normalised.
        utterances: references scored.
        dropped: references not scored, because nothing is left of them after normalisation.
    """

    wer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int
    utterances: int
    dropped: int


@functools.cache
def _normaliser() -> EnglishTextNormalizer:
    table = resources.files("whisper_normalizer") / "normalizers" / "english.json"
    return EnglishTextNormalizer(json.loads(table.read_text(encoding="utf-8")))


def normalise(text: str) -> str:
    """Whisper's English normalisation: "Mr. Brown's colour, uh, cost £20" → "mister brown is color cost £20"."""
    return _normaliser()(text).strip()


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Score transcripts against what was said.

    Args:
        references: what was said, one text per utterance.
        hypotheses: what was understood, in the same order; may be empty strings.

    Raises:
        UserError: the numbers differ, or no reference has a word.
    """
    if len(references) != len(hypotheses):
        raise UserError(f"word error rate: {len(references)} references, but {len(hypotheses)} hypotheses")
    pairs = [(normalise(reference), normalise(text)) for reference, text in zip(references, hypotheses, strict=True)]
    scored = [pair for pair in pairs if pair[0]]
    if not scored:
        raise UserError(f"word error rate: none of the {len(references)} references has a word")
    result = jiwer.process_words([reference for reference, _ in scored], [text for _, text in scored])
    return WordErrors(
        wer=100 * result.wer,
        substitutions=result.substitutions,
        deletions=result.deletions,
        insertions=result.insertions,
        words=result.hits + result.substitutions + result.deletions,
        utterances=len(scored),
        dropped=len(pairs) - len(scored),
    )
