from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparq.adaptation.examples import ROUND, ExampleStream
from sparq.adaptation.unit_noise import UnitNoise
from sparq.corpus.utterance import Utterance
from sparq.errors import UserError
from sparq.language.vocabulary import Modality


def said(text, *units):
    return [Utterance(text, np.array(its)) for its in units]


def test_one_reader_becomes_the_other():
    noise = UnitNoise.learn(said("one", [1, 1, 2, 3, 3], [1, 4, 4, 3]), 6)
    random = np.random.default_rng(0)
    assert noise(np.array([1, 2, 2, 2, 3]), 1.0, random).tolist() == [1, 4, 4, 4, 3]
    assert noise(np.array([4, 3, 5, 5, 0]), 1.0, random).tolist() == [2, 3, 5, 5, 0]  # 5 and 0 were never heard
    assert noise(np.array([4, 4, 3, 2]), 0.0, random).tolist() == [4, 4, 3, 2]
    assert noise.changed == pytest.approx(1 / 3)


def test_what_a_reader_leaves_out_and_puts_in():
    noise = UnitNoise.learn(said("one", [1, 2, 3], [1, 3]), 6)
    random = np.random.default_rng(0)
    found = [noise(np.array([1, 2, 2, 3]), 1.0, random).tolist() for _ in range(2000)]
    assert all([unit for unit in its if unit != 2] == [1, 3] for its in found)  # 2 alone comes and goes
    # A 2 is always left out, and half of the pairs put one in: one for five units, of which two are left here.
    assert np.mean([2 in its for its in found]) == pytest.approx(1 - (1 - 1 / 5) ** 2, abs=0.04)
    assert UnitNoise.learn(said("one", [2], []) + said("two", [2, 3], [3, 2]), 4)(np.array([2]), 1.0, random).size


def test_as_much_is_changed_as_is_asked_for():
    random = np.random.default_rng(0)
    first = random.integers(20, size=4000)
    second = np.where(random.random(first.size) < 0.3, random.integers(20, size=first.size), first)
    pairs = [
        one
        for index, (a, b) in enumerate(zip(np.split(first, 100), np.split(second, 100), strict=True))
        for one in said(f"text {index}", a, b)
    ]
    noise = UnitNoise.learn(pairs, 20)
    units = np.tile(np.arange(20), 1000)
    for share in (0.2, 1.0):
        assert len(noise(units, share, random)) == pytest.approx(len(units), rel=0.1)
    changed = [np.mean(noise(np.full(1, unit), 1.0, random)[0] != unit) for unit in units[:5000]]
    assert np.mean(changed) == pytest.approx(noise.changed, abs=0.06)
    half = [np.mean(noise(np.full(1, unit), 0.5, random)[0] != unit) for unit in units[:5000]]
    assert np.mean(half) == pytest.approx(np.mean(changed) / 2, abs=0.03)


def test_a_corpus_that_says_nothing_twice():
    with pytest.raises(UserError, match=r"adaptation\.unit_noise.*more than once"):
        UnitNoise.learn(said("one", [1, 2]) + said("two", [1, 3]) + said("", [1], [2]), 6)


def test_only_speech_that_is_to_be_understood_is_changed(vocabulary, make_sentences):
    twice = [one for u in make_sentences(30) for one in (u, Utterance(u.text, (u.units + 1) % vocabulary.units))]
    known = {tuple(vocabulary.encode_units(u.units)) for u in twice}

    def sequences(noise, seed=3):
        stream = ExampleStream(twice, vocabulary, {"asr": 1.0, "tts": 1.0}, 300, seed, unit_noise=noise)
        rows = (row for batch in itertools.islice(stream, ROUND) for row in batch["input_ids"].tolist())
        whole = [[index for index in row if index != vocabulary.pad_id] for row in rows]
        listening = vocabulary.control("<startofspeech>")
        units = lambda row: tuple(index for index in row if vocabulary.modality[index] == Modality.SPEECH)  # noqa: E731
        return [(row[0] == listening, units(row)) for row in whole]

    plain, changed = sequences(0.0), sequences(1.0)
    assert all(units in known for _, units in plain)
    assert all(units in known for listens, units in changed if not listens)
    share = np.mean([units not in known for listens, units in changed if listens])
    assert 0.3 < share < 1.0
    assert changed == sequences(1.0)
    assert changed != sequences(1.0, seed=4)
