from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.language.phrases import split_text


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text("ab.,", min_size=1, max_size=6), max_size=50),
    st.integers(1, 12),
    st.integers(8, 40),
)
def test_no_word_is_lost_and_no_phrase_too_long(words, longest, letters):
    phrases = split_text("  ".join(words), longest, lambda phrase: len(phrase) <= letters)
    assert " ".join(phrases).split() == words
    for phrase in phrases:
        assert len(phrase.split()) <= longest
        assert len(phrase) <= letters or " " not in phrase


def test_short_texts_are_left_alone():
    assert split_text("One. Two, three.\nFour", 4) == ["One. Two, three. Four"]


def test_cuts_fall_behind_sentences_then_clauses_then_words():
    text = 'The train leaves at nine, they say. "Does it?" she asked me once more, and looked up'
    assert split_text(text, 10) == [
        'The train leaves at nine, they say. "Does it?"',
        "she asked me once more, and looked up",
    ]
    assert split_text("and so it goes on, without a single sentence end", 6) == [
        "and so it goes on,",
        "without a single sentence end",
    ]
    assert split_text("a b c d e f g h", 4) == ["a b c d", "e f g h"]
