"""Transcripts weighed again by what the same model thinks of them as a speaker and as a writer.

A search for the likeliest text of some units knows p(text | units) alone. A SpeechLM has also learnt how the text
would be said, p(units | text), and how likely it is to be written at all, p(text): the tasks TTS and textLM. Of the
texts that a beam ends with, the one with the largest

    log p(text | units) + channel · log p(units | text) + prior · log p(text)

is taken: a noisy channel beside the direct model (Yu et al. 2017, "The Neural Noisy Channel"), all in one model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.language.likelihood import log_likelihoods
from sparq.language.tasks import TASKS, example
from sparq.language.vocabulary import Vocabulary
from sparq.speech.units import Units


@dataclasses.dataclass(frozen=True)
class Rescoring:
    """How much the other opinions count.

    Attributes:
        channel: weight of log p(units | text).
        prior: weight of log p(text).

    Raises:
        UserError: a weight below 0.
    """

    channel: float = 0.2
    prior: float = 0.2

    def __post_init__(self) -> None:
        for name, weight in dataclasses.asdict(self).items():
            if not weight >= 0:
                raise UserError(f"rescoring.{name}: {weight!r} (expected a number of at least 0)")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each task's log-likelihood; those that count nothing are left out."""
        weights = {"asr": 1.0, "tts": self.channel, "textlm": self.prior}
        return {task: weight for task, weight in weights.items() if weight}


def best_texts(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    units: Sequence[Units],
    candidates: Sequence[Sequence[str]],
    rescoring: Rescoring,
) -> list[str]:
    """Choose one of several transcripts for each utterance.

    Args:
        model: a SpeechLM's language model.
        vocabulary: its own.
        units: raw units of each utterance.
        candidates: texts for each, at least one; the first is taken where nothing can be compared: no other can be
            written, or the model has too few positions.
        rescoring: the weights.

    Returns:
        A text for each utterance.
    """
    positions = model.config.max_position_embeddings
    rows: list[tuple[int, str]] = []
    for index, texts in enumerate(candidates):
        different = [text for text in dict.fromkeys(texts) if vocabulary.write_text(text)]
        longest = max((_longest(vocabulary, text, units[index]) for text in different), default=0)
        if len(different) > 1 and longest <= positions:
            rows += [(index, text) for text in different]
    scores = [0.0] * len(rows)
    for task, weight in rescoring.weights.items():
        examples = [example(TASKS[task], vocabulary, text=text, units=units[index]) for index, text in rows]
        for row, likelihood in enumerate(log_likelihoods(model, examples)):
            scores[row] += weight * likelihood
    chosen = {index: texts[0] for index, texts in enumerate(candidates)}
    best: dict[int, float] = {}
    for (index, text), score in zip(rows, scores, strict=True):
        if index not in best or score > best[index]:
            best[index], chosen[index] = score, text
    return [chosen[index] for index in range(len(candidates))]


def _longest(vocabulary: Vocabulary, text: str, units: Units) -> int:
    return len(example(TASKS["asr"], vocabulary, text=text, units=units).input_ids)
