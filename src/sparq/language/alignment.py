"""When each word of a transcript was said, read off where the model looks while it writes the word.

Writing a piece of text, some heads attend to the units in which it was said. Which ones depends on the model, so they
are found for each utterance: those whose attention a path that never goes back follows best. Their mean says for every
stretch of units how much each word looks at it, and the words are laid over the units in their order so that the sum
of the logarithms is largest (Viterbi). On sentences that a voice read which tells its word times, words of the model
that ships are placed within a unit or two (``results/transcribing.json``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparq.attention.observe import observed
from sparq.deployment import DeployedModel
from sparq.errors import UserError
from sparq.language.tasks import IGNORED, TASKS, example
from sparq.language.vocabulary import Vocabulary
from sparq.quantization.calibration import evaluating
from sparq.speech.units import Units, merge_repeats
from sparq.speech.voice import Word

_SHARE = 6  # one head in so many is followed; of the 48 of what ships, 8 place words best, and 6 to 16 nearly as well
_LEAST = 1e-4  # attention that counts as none, so that one piece seen nowhere does not rule a path out
_LEAST_SHARE = 1e-3  # the same for a word's share


def word_times(
    model: Any, vocabulary: Vocabulary, units: Units, text: str, seconds_per_frame: float
) -> tuple[Word, ...]:
    """Say when the words of a text were spoken.

    Args:
        model: a SpeechLM's language model, whose attention can be seen.
        vocabulary: its own.
        units: raw units of the utterance.
        text: what is said in it.
        seconds_per_frame: how long a unit lasts.

    Returns:
        The words of ``text.split()`` with their times from the start of the utterance, each beginning where the one
        before ends; () where there is no place for all: more words than units, or than the model has positions.

    Raises:
        UserError: the model is deployed, or of an architecture whose attention cannot be seen.
    """
    if isinstance(model, DeployedModel):
        raise UserError("word times need the attention, which a deployed model does not show")
    made = example(TASKS["asr"], vocabulary, text=text, units=units)
    ids, words = made.input_ids, text.split()
    first = next(index for index, label in enumerate(made.labels) if label != IGNORED)
    pieces = ids[first:-1]  # without the end
    owners = np.array([len(vocabulary.decode_text(pieces[: i + 1]).split()) - 1 for i in range(len(pieces))])
    owners = np.maximum(owners, 0)
    places, ends = _spoken_pieces(vocabulary, ids[:first], units)
    fits = len(ids) <= model.config.max_position_embeddings and len(words) <= len(places)
    if not words or not fits or set(owners.tolist()) != set(range(len(words))):
        return ()
    seen: list[np.ndarray] = []
    with evaluating(model), observed(model, lambda layer: seen.append(layer.probabilities[0].float().cpu().numpy())):
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    # What writes a piece is the position before it.
    attention = np.concatenate(seen)[:, first - 1 : first - 1 + len(pieces)][:, :, places]
    looked = _following(attention).mean(axis=0)
    shares = np.stack([looked[owners == word].sum(axis=0) for word in range(len(words))])
    begun = _laid_over(shares / np.maximum(shares.sum(axis=0), 1e-9), np.diff(ends, prepend=0))
    edges = seconds_per_frame * np.array([ends[start - 1] if start else 0 for start in [*begun, len(ends)]])
    return tuple(
        Word(word, float(start), float(end)) for word, start, end in zip(words, edges, edges[1:], strict=False)
    )


def _spoken_pieces(vocabulary: Vocabulary, prompt: Sequence[int], units: Units) -> tuple[list[int], np.ndarray]:
    """Give the positions of the prompt's pieces of speech, and the frame at which each ends."""
    lasts = merge_repeats(units)[1] if vocabulary.deduplicate else np.ones(len(units), np.int64)
    held = [len(vocabulary.decode_units([piece])) for piece in prompt]
    places = [position for position, count in enumerate(held) if count]
    return places, np.cumsum(lasts)[np.cumsum([held[place] for place in places]) - 1]


def _following(attention: np.ndarray) -> np.ndarray:
    """Choose the heads that follow speech: [heads, pieces, places] to fewer heads.

    Judged by the mean logarithm of the attention along the best path that never goes back.
    """
    logs = np.log(attention + _LEAST)
    best = logs[:, 0]
    for piece in range(1, logs.shape[1]):
        best = np.maximum.accumulate(best, axis=1) + logs[:, piece]
    count = max(1, len(attention) // _SHARE)
    chosen: np.ndarray = attention[np.argsort(-best.max(axis=1), kind="stable")[:count]]
    return chosen


def _laid_over(shares: np.ndarray, frames: np.ndarray) -> list[int]:
    """Lay words over places in order, at least one place each, by the largest sum of log shares over frames.

    Args:
        shares: of each word in each place, [words, places].
        frames: that each place lasts, [places].

    Returns:
        The place at which each word begins, the first 0.
    """
    words, places = shares.shape
    logs = np.log(shares + _LEAST_SHARE) * frames
    best = np.full(words, -np.inf)
    best[0] = logs[0, 0]
    came = np.zeros((words, places), bool)  # from the word before
    for place in range(1, places):
        before = np.concatenate([[-np.inf], best[:-1]])
        came[:, place] = before > best
        best = np.maximum(best, before) + logs[:, place]
    begun, word = [0] * words, words - 1
    for place in range(places - 1, 0, -1):
        if came[word, place]:
            begun[word] = place
            word -= 1
    return begun
