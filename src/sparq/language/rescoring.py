"""What a search finds, weighed again by what the same model thinks of it in its other tasks.

A search for the likeliest text of some units knows p(text | units) alone. A SpeechLM has also learnt how the text
would be said, p(units | text), and how likely it is to be written at all, p(text): the tasks TTS and textLM. Of the
texts that a beam ends with, the one with the largest

    log p(text | units) + channel · log p(units | text) + prior · log p(text)

is taken: a noisy channel beside the direct model (Yu et al. 2017, "The Neural Noisy Channel"), all in one model. Where
the same speech was heard in several ways (:mod:`sparq.speech.views`), the first two are means over all of them. A
language model that has read more may say log p(text) in its place (:mod:`sparq.language.prior`).

The same holds for what it says: of the units that a search ends with, those are taken in which the model itself hears
the text best, so that a word left out or slurred is noticed before it is spoken.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.language.likelihood import log_likelihoods
from sparq.language.tasks import TASKS, example
from sparq.language.vocabulary import Modality, Vocabulary
from sparq.speech.units import Units

if TYPE_CHECKING:
    from sparq.language.prior import Prior

HEARD = {"tts": 0.1}
"""How much it counts, beside that a text is heard in units, that they are how it would be said."""

_WEIGHED = 5  # the likeliest pairs, before the other tasks are asked; others are not worth their time


@dataclasses.dataclass(frozen=True)
class Rescoring:
    """How much the other opinions count.

    Attributes:
        channel: weight of log p(units | text).
        prior: weight of log p(text), whoever gives it.

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
        """Weight of each other task's log-likelihood; those that count nothing are left out."""
        weights = {"tts": self.channel, "textlm": self.prior}
        return {task: weight for task, weight in weights.items() if weight}


WITH_PRIOR = Rescoring(channel=0.4, prior=0.5)
"""The weights where another language model gives log p(text)."""


def best_texts(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    units: Sequence[Units],
    candidates: Sequence[Sequence[str]],
    rescoring: Rescoring,
    views: Sequence[Sequence[Units]] | None = None,
    prior: Prior | None = None,
    told: Sequence[Mapping[str, float]] | None = None,
) -> list[str]:
    """Choose one of several transcripts for each utterance.

    Args:
        model: a SpeechLM's language model.
        vocabulary: its own.
        units: raw units of each utterance.
        candidates: texts for each, at least one; the first is taken where nothing can be compared: no other can be
            written, or the model has too few positions.
        rescoring: the weights.
        views: units of each utterance heard in other ways, which count as much; None for no other.
        prior: who says how likely a text is to be written; None for the model itself.
        told: log p(text | units) of each utterance's texts where a search has told it; the model is asked for others.

    Returns:
        A text for each utterance.
    """
    ways = [(one, *others) for one, others in zip(units, views or [()] * len(units), strict=True)]
    pairs = [
        [_Said(text, way, known.get(text, math.nan)) for text in dict.fromkeys(texts) if vocabulary.write_text(text)]
        for way, texts, known in zip(ways, candidates, told or [{}] * len(units), strict=True)
    ]
    chosen = _likeliest(model, vocabulary, pairs, rescoring.weights, prior)
    return [texts[0] if best is None else best.text for texts, best in zip(candidates, chosen, strict=True)]


def best_units(
    model: PreTrainedModel, vocabulary: Vocabulary, texts: Sequence[str], candidates: Sequence[Sequence[Sequence[int]]]
) -> list[Units]:
    """Choose one of several ways to say each text: that in which the model hears it best.

    Args:
        model: a SpeechLM's language model.
        vocabulary: its own.
        texts: what is to be said.
        candidates: units for each, at least one; the first are taken where nothing can be compared.

    Returns:
        Units for each text.
    """
    pairs = [
        [_Said(text, (units,)) for units in dict.fromkeys(map(tuple, several)) if units]
        for text, several in zip(texts, candidates, strict=True)
    ]
    chosen = _likeliest(model, vocabulary, pairs, HEARD)
    return [several[0] if best is None else best.heard[0] for several, best in zip(candidates, chosen, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Said:
    """A text and units that may belong together, of one way in which it was heard or of several.

    Its log-likelihood in the task ASR may be known, and is no number where it is not.
    """

    text: str
    heard: tuple[Units, ...]
    asr: float = math.nan


def _likeliest(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    pairs: Sequence[Sequence[_Said]],
    weights: Mapping[str, float],
    prior: Prior | None = None,
) -> list[_Said | None]:
    """Give the pair with the largest weighted log-likelihood of each group, None where nothing can be compared.

    ASR, and a prior in place of textLM, judge all pairs; the other tasks those that are likeliest by then.
    """
    positions = model.config.max_position_embeddings
    rows: list[tuple[int, _Said]] = []
    for index, group in enumerate(pairs):
        longest = max((_length(vocabulary, said) for said in group), default=0)
        if len(group) > 1 and longest <= positions:
            rows += [(index, said) for said in group]
    scores = dict.fromkeys(range(len(rows)), 0.0)

    def weigh(tasks: Mapping[str, float]) -> None:
        for task, weight in tasks.items():
            found = _likelihoods(model, vocabulary, [rows[row][1] for row in scores], task, prior)
            for row, its in zip(scores, found, strict=True):
                scores[row] += weight * its

    at_once = {task: weight for task, weight in weights.items() if prior and task == "textlm"}
    weigh({"asr": 1.0} | at_once)
    for numbers in _grouped(rows):
        for row in sorted(numbers, key=scores.__getitem__, reverse=True)[_WEIGHED:]:
            del scores[row]
    weigh({task: weight for task, weight in weights.items() if task not in at_once})
    chosen: list[_Said | None] = [None] * len(pairs)
    for numbers in _grouped(rows):
        best = max((row for row in numbers if row in scores), key=scores.__getitem__)
        chosen[rows[best][0]] = rows[best][1]
    return chosen


def _grouped(rows: Sequence[tuple[int, _Said]]) -> Iterator[list[int]]:
    """Give the numbers of the rows of each group."""
    for _, group in itertools.groupby(range(len(rows)), key=lambda row: rows[row][0]):
        yield list(group)


def _likelihoods(
    model: PreTrainedModel, vocabulary: Vocabulary, pairs: Sequence[_Said], task: str, prior: Prior | None
) -> list[float]:
    """Give the log-likelihood in a task of each pair, its mean over the ways of hearing it where these matter."""
    if prior and task == "textlm":
        return prior.log_likelihoods([said.text for said in pairs])
    asked = [said for said in pairs if task != "asr" or math.isnan(said.asr)]
    spoken = Modality.SPEECH in (TASKS[task].condition, TASKS[task].target)
    ways = [said.heard if spoken else said.heard[:1] for said in asked]
    examples = [
        example(TASKS[task], vocabulary, text=said.text, units=units)
        for said, heard in zip(asked, ways, strict=True)
        for units in heard
    ]
    found = iter(log_likelihoods(model, examples))
    means = {said: sum(next(found) for _ in heard) / len(heard) for said, heard in zip(asked, ways, strict=True)}
    return [means.get(said, said.asr) for said in pairs]


def _length(vocabulary: Vocabulary, said: _Said) -> int:
    return max(len(example(TASKS["asr"], vocabulary, text=said.text, units=units).input_ids) for units in said.heard)
