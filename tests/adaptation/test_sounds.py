from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_start import save_pretrained

from sparq.adaptation.sounds import sound_embeddings
from sparq.adaptation.start import pretrained_model
from sparq.corpus.utterance import Utterance

WIDTH = 24


@pytest.fixture(scope="module")
def words(extended):
    return torch.randn(extended.text_size, WIDTH, generator=torch.Generator().manual_seed(0)) + 3


def timed(utterance):
    """With the times of words that take as long as they have letters."""
    letters = np.cumsum([0, *(len(word) + 1 for word in utterance.text.split())])
    frames = np.round(letters * len(utterance.units) / letters[-1]).astype(np.int64)
    return dataclasses.replace(utterance, starts=frames[:-1], ends=frames[1:])


def closeness(vocabulary, rows, utterance, words):
    """The cosine between what a sentence's pieces add up to and what its tokens do, from their means."""
    mean = words.mean(0)
    pieces = torch.stack([rows[index] for index in vocabulary.encode_units(utterance.units)])
    tokens = words[vocabulary.encode_text(utterance.text)]
    return torch.cosine_similarity((pieces - mean).sum(0), (tokens - mean).sum(0), dim=0).item()


def test_pieces_add_up_to_the_words_they_are_heard_in(extended, make_sentences, words):
    said = make_sentences(300)
    rows = sound_embeddings(extended, said[:200], words)
    right = [closeness(extended, rows, one, words) for one in said[200:]]
    turned = torch.flip(words, (0,))
    wrong = [closeness(extended, rows, one, turned) for one in said[200:]]
    assert np.mean(right) > 0.5
    assert np.mean(right) > np.mean(wrong) + 0.4


def test_least_squares_where_they_have_one_solution(extended, words):
    """Two words that were heard as two pieces: each piece points where its word does."""
    first, second = (extended.encode_units([unit] * 3) for unit in (4, 7))
    said = [_utterance("one", [4, 4, 4]), _utterance("two", [7, 7])] * 50
    rows = sound_embeddings(extended, said, words)
    mean = words.mean(0)
    for ids, word in ((first, "one"), (second, "two")):
        aim = words[extended.encode_text(word)].mean(0) - mean
        assert torch.cosine_similarity(rows[ids[0]] - mean, aim, dim=0) > 0.999
    assert len(rows) == 2


def _utterance(text, units):
    return Utterance(text, np.array(units))


def test_times_that_are_told_count(extended, make_sentences, words):
    said = make_sentences(60)
    evenly = sound_embeddings(extended, said, words)
    told = sound_embeddings(extended, [timed(one) for one in said], words)
    late = sound_embeddings(
        extended,
        [dataclasses.replace(timed(u), starts=timed(u).starts[::-1], ends=timed(u).ends[::-1]) for u in said],
        words,
    )
    shared = sorted(evenly.keys() & told.keys() & late.keys())
    stacked = [torch.stack([rows[i] for i in shared]) for rows in (evenly, told, late)]
    assert (stacked[0] - stacked[1]).norm() < 0.5 * (stacked[0] - stacked[2]).norm()


def test_they_lie_as_far_from_the_mean_as_words(extended, make_sentences, words):
    rows = torch.stack(list(sound_embeddings(extended, make_sentences(100), words).values()))
    far = (words - words.mean(0)).norm(dim=1).mean()
    assert (rows - words.mean(0)).norm(dim=1).mean().item() == pytest.approx(far.item(), rel=1e-4)
    assert rows.dtype == words.dtype


def test_without_speech_with_text_there_is_nothing_to_know(extended, words):
    assert sound_embeddings(extended, [], words) == {}
    assert sound_embeddings(extended, [_utterance("one", []), _utterance("", [1, 2])], words) == {}


def test_a_model_starts_with_them_and_keeps_its_words(extended, make_sentences, tmp_path):
    before = save_pretrained("llama", tmp_path / "text").get_input_embeddings().weight
    said = make_sentences(40)
    plain = pretrained_model(tmp_path / "text", extended).get_input_embeddings().weight
    model = pretrained_model(tmp_path / "text", extended, utterances=said)
    rows = sound_embeddings(extended, said, before.detach()[: extended.text_size])
    started = model.get_input_embeddings().weight
    for index, row in rows.items():
        assert torch.equal(started[index], row)
    others = [index for index in range(extended.size) if index not in rows]
    assert torch.equal(started[others], plain[others])
