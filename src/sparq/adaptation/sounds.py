"""Embeddings for the speech pieces of a pretrained model that start as what they sound like.

A speech piece that is new to a language model is nothing to it, and hundreds of thousands of pieces go by until speech
and text are found to be alike. Yet a corpus tells from the start which words each piece is a sound of. Here the pieces
that are heard during a word shall add up to the mean of its tokens' embeddings, by least squares over many words, so
that speech begins as a blurred writing of what is said, and what the model knows of repeating and correcting text
serves at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sparq.corpus.utterance import Utterance
from sparq.language.vocabulary import ExtendedVocabulary

_ENOUGH = 6000  # utterances that are looked at; a hundred thousand words for a thousand pieces
_RIDGE = 3.0  # occurrences by which a piece that is seldom heard is drawn to the mean


def sound_embeddings(
    vocabulary: ExtendedVocabulary, utterances: Sequence[Utterance], words: Tensor, seed: int = 0
) -> dict[int, Tensor]:
    """Find embeddings for speech pieces from the words that they are heard in.

    Args:
        vocabulary: of text and speech.
        utterances: a corpus; speech with its text is looked at. Where nobody told when its words were said, they share
            the time by their letters, which does nearly as well (results/by_hand.json, sound_embeddings).
        words: embeddings of the text tokens [tokens, width].
        seed: of the choice among many utterances.

    Returns:
        Embeddings [width] by the ids of the pieces that are heard in any word; as far from the mean of ``words`` as
        these are, on the average. Empty where there is no speech with its text.
    """
    said = [one for one in utterances if len(one.units) and one.text.strip()]
    chosen = np.random.default_rng(seed).permutation(len(said))[:_ENOUGH]
    mean = words.double().mean(0)
    deviations = words.double() - mean
    first, count = vocabulary.text_size, vocabulary.size - vocabulary.text_size
    products = np.zeros((count, count))
    sums = np.zeros((count, words.shape[1]))
    for index in chosen:
        for tokens, ids, shares in _heard_words(vocabulary, said[index]):
            places = ids - first
            products[np.ix_(places, places)] += np.outer(shares, shares)
            sums[places] += np.outer(shares, deviations[tokens].mean(0).numpy())
    heard = np.flatnonzero(np.diag(products))
    if not len(heard):
        return {}
    solved = np.linalg.solve(products + _RIDGE * np.eye(count), sums)[heard]
    scale = deviations.norm(dim=1).mean().item() / np.linalg.norm(solved, axis=1).mean()
    rows = (mean + scale * torch.from_numpy(solved)).to(words.dtype)
    return {int(first + piece): row for piece, row in zip(heard, rows, strict=True)}


def _heard_words(
    vocabulary: ExtendedVocabulary, utterance: Utterance
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Give each word's tokens, the different pieces heard during it, and how much of each: 1 for the whole piece."""
    ids = np.array(vocabulary.encode_units(utterance.units))
    bounds = _piece_bounds(vocabulary, utterance.units, ids)
    for word, (start, end) in zip(utterance.text.split(), _word_times(utterance), strict=True):
        tokens = vocabulary.encode_text(word)  # none of what is no word
        shared = (np.minimum(bounds[1:], end) - np.maximum(bounds[:-1], start)) / np.diff(bounds)
        during = shared > 0
        if tokens and during.any():
            pieces, places = np.unique(ids[during], return_inverse=True)
            yield tokens, pieces, np.bincount(places, shared[during])


def _word_times(utterance: Utterance) -> Iterator[tuple[float, float]]:
    """Give the first frame of each word and the one behind it, by its letters where they are not known."""
    if utterance.starts is not None and utterance.ends is not None:
        return zip(utterance.starts, utterance.ends, strict=True)
    letters = np.cumsum([0, *(len(word) + 1 for word in utterance.text.split())])
    frames = letters * len(utterance.units) / letters[-1]
    return itertools.pairwise(frames)


def _piece_bounds(vocabulary: ExtendedVocabulary, units: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Give the frame where each piece begins, and behind it the number of frames."""
    begins = (
        np.flatnonzero(np.insert(units[1:] != units[:-1], 0, True)) if vocabulary.deduplicate else np.arange(len(units))
    )
    lengths = [len(vocabulary.decode_units([one])) for one in ids]
    return np.append(begins, len(units))[np.concatenate([[0], np.cumsum(lengths)])]
