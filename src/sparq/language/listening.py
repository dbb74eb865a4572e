"""Recordings of any length heard piece by piece, so that what is said comes with its time.

Speech is found, cut at its pauses, made into units and written down in batches that span recordings. Batches begin
with one piece and grow, so that the first words of a long recording are there at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.language.alignment import word_times
from sparq.language.generation import GenerationOptions, beam_search, candidates
from sparq.language.joint_search import Answer, search_together
from sparq.language.likelihood import log_likelihoods
from sparq.language.prior import get_ready
from sparq.language.rescoring import WITH_PRIOR, Rescoring, best_texts
from sparq.language.tasks import IGNORED, TASKS, example, prompt
from sparq.language.vocabulary import Vocabulary
from sparq.speech.audio import RATE
from sparq.speech.level import levelled
from sparq.speech.segmentation import spoken_spans
from sparq.speech.units import Units
from sparq.speech.views import VIEWS, other_views
from sparq.speech.voice import Word

if TYPE_CHECKING:
    from sparq.language.speech_lm import SpeechLM

LISTENING, LISTENING_IN_VIEWS, LISTENING_WITH_PRIOR = beam_search(8), beam_search(4), beam_search(24)
"""How speech is written down that is heard in one way, in several, and in several where a prior chooses: what was said
has one right answer, and a wrong piece spoils those after it."""

BATCH = 16
_MARGIN = 6.0  # nats behind the best at which a beam is given up where a prior chooses, which seldom takes it
_EDGE = 0.2  # seconds of silence where a recording begins or ends with speech; other edges keep as much of their own
_READ_AHEAD = 4  # batches whose pieces are sorted by length, so that those of like length share one


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of speech, written down.

    Attributes:
        start: seconds from the start of the recording.
        end: the same.
        text: what is said.
        confidence: how likely the model finds the text given what it heard, 0 to 1: the geometric mean over its pieces.
        words: of the text, with their times in the recording; () if they were not asked for, or have no place.
    """

    start: float
    end: float
    text: str
    confidence: float
    words: tuple[Word, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Piece:
    recording: int
    start: float
    end: float
    units: np.ndarray
    views: tuple[np.ndarray, ...] = ()


def listen(
    lm: SpeechLM,
    recordings: Iterable[np.ndarray],
    options: GenerationOptions | None = None,
    *,
    views: int = len(VIEWS),
    batch: int = BATCH,
    words: bool = False,
    heard: Callable[[int], float] = lambda _: 0.0,
) -> Iterator[tuple[int, Segment | None]]:
    """Write down recordings one after another, batched across them.

    Args:
        lm: who listens.
        recordings: float32 [samples] at 16 kHz; each is asked for when its turn comes.
        options: how pieces are chosen; None for the beam of `SpeechLM.write_down`.
        views: in how many ways each segment is heard (:mod:`sparq.speech.views`).
        batch: segments written down at once; what comes out does not depend on it.
        words: whether segments tell when each word was said.
        heard: asked for each recording that has come: how many of its seconds need not be heard again.

    Yields:
        The number of a recording and its next segment, in order; None in place of it when that recording is over.
        Segments in which nothing was understood are left out.

    Raises:
        UserError: ``batch`` is below 1, or a recording cannot be heard.
    """
    if batch < 1:
        raise UserError(f"batch: {batch} (expected at least 1)")
    get_ready(lm.prior)  # it is asked last
    pieces = _pieces(lm, recordings, views, heard)
    taken = 1
    while found := list(itertools.islice(pieces, taken)):
        units = [one.units for one in found if one.units.size]
        others = [one.views for one in found if one.units.size]
        texts = lm.write_down(units, options, views=others, batch=batch) if units else []
        written = zip(texts, confidences(lm.model, lm.vocabulary, units, texts), strict=True)
        for one in found:
            if not one.units.size:
                yield one.recording, None
                continue
            text, confidence = next(written)
            if text:
                said = _words(lm, one, text) if words else ()
                yield one.recording, Segment(one.start, one.end, text, confidence, said)
        taken = min(2 * taken, _READ_AHEAD * batch)


def write_down(
    lm: SpeechLM,
    units: Sequence[Units],
    options: GenerationOptions | None = None,
    rescoring: Rescoring | None = None,
    *,
    views: Sequence[Sequence[Units]] | None = None,
    batch: int = BATCH,
) -> list[str]:
    """Write down what is said in raw units; see ``SpeechLM.write_down``."""
    margin = math.inf
    if options is None:
        margin = _MARGIN if lm.prior else margin
        in_views = LISTENING_WITH_PRIOR if lm.prior else LISTENING_IN_VIEWS
        options = in_views if any(views or ()) else LISTENING
    task, vocabulary = TASKS["asr"], lm.vocabulary
    ways = [(one, *others) for one, others in zip(units, views or [()] * len(units), strict=True)]
    prompts = [[prompt(task, vocabulary, one) for one in heard] for heard in ways]
    weights = rescoring or (WITH_PRIOR if lm.prior else Rescoring())
    if options.method == "sample":  # each way draws for itself
        drawn = iter(candidates(lm.model, vocabulary, list(chain(*prompts)), task.target, options, batch=batch))
        texts = [[vocabulary.decode_text(ids) for ids in chain(*(next(drawn) for _ in heard))] for heard in ways]
        return best_texts(lm.model, vocabulary, units, texts, weights, views, lm.prior)
    found = search_together(lm.model, vocabulary, prompts, task.target, options, margin=margin, batch=batch)
    texts = [[vocabulary.decode_text(its.ids) for its in answers] for answers in found]
    told = [_told(vocabulary, *both) for both in zip(texts, found, strict=True)]
    return best_texts(lm.model, vocabulary, units, texts, weights, views, lm.prior, told)


def _told(vocabulary: Vocabulary, texts: Sequence[str], answers: Sequence[Answer]) -> dict[str, float]:
    """Give the log-likelihood of texts that were found in the pieces they are written in; others have less of it."""
    both = zip(texts, answers, strict=True)
    return {text: its.log_likelihood for text, its in both if vocabulary.encode_text(text) == its.ids}


def _words(lm: SpeechLM, piece: _Piece, text: str) -> tuple[Word, ...]:
    encoder = lm.extractor.encoder
    found = word_times(lm.model, lm.vocabulary, piece.units, text, encoder.hop / encoder.rate)
    begin = piece.start or -_EDGE  # of what was heard

    def within(seconds: float) -> float:
        return min(max(piece.start, begin + seconds), piece.end)

    return tuple(Word(one.text, within(one.start), within(one.end)) for one in found)


def _pieces(
    lm: SpeechLM, recordings: Iterable[np.ndarray], views: int, heard: Callable[[int], float]
) -> Iterator[_Piece]:
    """Give what is to be written down, and behind each recording a piece without units."""
    # A frame gives at most one piece; half of the positions are left for the text.
    encoder, positions = lm.extractor.encoder, lm.model.config.max_position_embeddings
    longest = min(lm.limits.seconds, positions // 2 * encoder.hop / encoder.rate)
    for index, waveform in enumerate(recordings):
        after = heard(index)
        for span in spoken_spans(levelled(waveform), lm.detector, longest):
            if span.start / RATE < after:
                continue
            silence = [round(_EDGE * RATE) * at_edge for at_edge in (not span.start, span.stop == len(waveform))]
            part = np.pad(levelled(waveform[span.start : span.stop]), silence)  # who speaks low beside others, too
            (units,) = lm.extractor.extract([part])
            if units.size:
                (others,) = other_views(lm.extractor, [part], views)
                yield _Piece(index, span.start / RATE, span.stop / RATE, units, others)
        end = len(waveform) / RATE
        yield _Piece(index, end, end, np.zeros(0, np.int64))


def confidences(
    model: PreTrainedModel, vocabulary: Vocabulary, units: Sequence[Units], texts: Sequence[str]
) -> list[float]:
    """Say how likely each text is given its units, as `Segment.confidence` has it; 0 where it has no text.

    A text that fits the model's positions no longer is judged by 0 too.
    """
    examples = [example(TASKS["asr"], vocabulary, text=text, units=one) for text, one in zip(texts, units, strict=True)]
    positions = model.config.max_position_embeddings
    judged = [i for i, one in enumerate(examples) if texts[i] and len(one.input_ids) <= positions]
    found = [0.0] * len(texts)
    for index, likelihood in zip(judged, log_likelihoods(model, [examples[i] for i in judged]), strict=True):
        pieces = sum(label != IGNORED for label in examples[index].labels)
        found[index] = math.exp(likelihood / pieces)
    return found
