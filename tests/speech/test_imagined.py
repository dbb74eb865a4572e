from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from sparq.corpus.codebook import load_codebook
from sparq.errors import UserError
from sparq.speech.imagined import ImaginedReaders, Told
from sparq.speech.phones import BREAKS, END, MARK, PAUSE, WORD, phones_and_breaks, pronounce

TEXTS = [
    "The cat sat on the mat.", "A dog had two cats, and they ran.", "Nobody knew that the dog was mad.",
    "He sat there, quite still.", "Two men ran to the town.", "They had a plan that day.",
]  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    """A codebook whose unit n sounds like phone n alone, and what each unit is."""
    book = load_codebook("codebook")
    phones = book.classifier.phones
    return dataclasses.replace(book, centroids=np.eye(len(phones), dtype=np.float32)), phones


def spoken(text, phones, frames=2, change=lambda symbols: symbols):
    """Raw units of a reader who says each phone for two frames, and pauses at marks and ends alone."""
    said = [PAUSE if symbol in BREAKS else symbol for symbol in change(phones_and_breaks(text)) if symbol != WORD]
    return np.repeat([phones.index(symbol) for symbol in said], frames)


def learnt(book, phones, texts=TEXTS, **how):
    return ImaginedReaders.learn(book, [Told("she", text, spoken(text, phones, **how)) for text in texts])


def test_breaks_stand_between_the_phones():
    symbols = phones_and_breaks("The cat, it sat.")
    assert symbols[0] == symbols[-1] == END
    assert [symbol for symbol in symbols[1:-1] if symbol in BREAKS] == [WORD, MARK, WORD]
    assert pronounce("The cat, it sat.") == tuple(PAUSE if symbol in BREAKS else symbol for symbol in symbols)
    for text in ("", "  ", "...", "Well - yes!", '"No," he said; "not now."'):
        symbols = phones_and_breaks(text)
        assert not any(a in BREAKS and b in BREAKS for a, b in itertools.pairwise(symbols))
    assert phones_and_breaks("...") == (END,)


def test_a_steady_reader_reads_anything_as_expected(plain):
    book, phones = plain
    readers = learnt(book, phones)
    for text in ("That man had a cat.", "They ran, and he sat there."):
        read = readers.read(text, np.random.default_rng(0))
        np.testing.assert_array_equal(read.units, spoken(text, phones))
        assert read.reader == "she"


def test_words_lie_where_their_phones_are(plain):
    book, phones = plain
    readers = learnt(book, phones)
    text = "They ran, and he sat there."
    read = readers.read(text, np.random.default_rng(0))
    for word, start, end in zip(text.split(), read.starts, read.ends, strict=True):
        own = [symbol for symbol in phones_and_breaks(word) if symbol not in BREAKS]
        if word not in ("and", "there."):  # which sound otherwise alone
            assert [phones[unit] for unit in read.units[start:end:2]] == own
    assert (read.starts[1:] >= read.ends[:-1]).all()
    assert read.starts[2] == read.ends[1] + 2  # the pause at the comma


def test_a_text_whose_words_are_said_otherwise_has_no_times(plain):
    book, phones = plain
    readers = learnt(book, phones, [*TEXTS, "Twenty five men had 25 cats."])
    read = readers.read("25 men ran.", np.random.default_rng(0))
    assert read.starts is None
    assert read.ends is None
    assert len(read.units)


def test_phones_are_said_as_they_are_heard_between_their_neighbours(plain):
    """A reader who says t for d before a vowel, and swallows every h, does so in new texts, and nowhere else."""
    book, phones = plain

    def accent(symbols):
        said = []
        for symbol, after in itertools.pairwise((*symbols, END)):
            if symbol == "d" and after == "ɔ":
                said.append("t")
            elif symbol != "h":
                said.append(symbol)
        return said

    texts = [f"{word} sat." for word in ("A dog", "The dog", "My dog", "That dog", "Bad dogs", "Mad men", "He")]
    readers = learnt(book, phones, 4 * texts, change=accent)
    for text in ("The bad dog sat.", "He had a mad dog."):
        read = readers.read(text, np.random.default_rng(1))
        np.testing.assert_array_equal(read.units, spoken(text, phones, change=accent))


def test_ways_are_drawn_as_often_as_they_are_heard(plain):
    book, phones = plain
    z, s = phones.index("z"), phones.index("s")
    units = spoken("Dogs ran.", phones)
    other = np.where(units == z, s, units)
    told = [Told("she", "Dogs ran.", other if n % 4 == 0 else units) for n in range(80)]
    readers = ImaginedReaders.learn(book, told)
    random = np.random.default_rng(0)
    read = [readers.read("Dogs ran.", random).units for _ in range(400)]
    assert np.mean([s in its for its in read]) == pytest.approx(0.25, abs=0.07)


def test_readers_are_drawn_as_often_as_they_are_heard_and_keep_to_themselves(plain):
    book, phones = plain
    slow = [Told("slow", text, spoken(text, phones, frames=4)) for text in TEXTS]
    quick = [Told("quick", text, spoken(text, phones, frames=1)) for text in TEXTS * 3]
    readers, random = ImaginedReaders.learn(book, slow + quick), np.random.default_rng(0)
    read = [readers.read("That man had a cat.", random) for _ in range(200)]
    for one in read:
        frames = 4 if one.reader == "slow" else 1
        np.testing.assert_array_equal(one.units, spoken("That man had a cat.", phones, frames=frames))
    assert np.mean([one.reader == "slow" for one in read]) == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_alignment_parts_the_units(plain, seed):
    book, phones = plain
    random = np.random.default_rng(seed)
    text = TEXTS[seed]
    units = spoken(text, phones)
    noisy = np.insert(units, random.integers(len(units)), random.integers(len(phones)))
    ways = ImaginedReaders(book).align(phones_and_breaks(text), noisy)
    assert len(ways) == len(phones_and_breaks(text))
    np.testing.assert_array_equal(np.concatenate(ways), noisy)


def test_another_text_is_not_believed(plain):
    book, phones = plain
    readers = ImaginedReaders(book)
    assert readers.align(phones_and_breaks(TEXTS[0]), spoken(TEXTS[0], phones)) is not None
    assert readers.align(phones_and_breaks(TEXTS[0]), spoken(TEXTS[2], phones)) is None
    with pytest.raises(UserError, match="none of their utterances sounds like its text"):
        ImaginedReaders.learn(book, [Told("she", TEXTS[0], spoken(TEXTS[2], phones))])


def test_what_no_reader_ever_said_is_not_read(plain):
    book, phones = plain
    assert learnt(book, phones, ["A cat sat."]).read("Measure by measure.", np.random.default_rng(0)) is None


def test_plain_units_tell_nothing(plain):
    book, _ = plain
    with pytest.raises(UserError, match="readers: have plain units"):
        ImaginedReaders(dataclasses.replace(book, classifier=None))
