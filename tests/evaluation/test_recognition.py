from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.errors import UserError
from sparq.evaluation.recognition import normalise, word_error_rate


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Mr. Brown's colour, uh, cost £20!", "mister brown is color cost £20"),
        ("It's a quarter past nine.", "it is a quarter past 9"),
        ("twenty-one thousand", "21000"),
        ("[laughs] (softly) Hello", "hello"),
        ("naïve café", "naive cafe"),
        ("Um, hmm.", ""),
    ],
)
def test_the_normaliser_is_whispers(text, normal):
    assert normalise(text) == normal


def test_counts():
    result = word_error_rate(["the cat sat on the mat", "hello there"], ["the hat sat the mat", "oh hello there now"])
    assert (result.substitutions, result.deletions, result.insertions) == (1, 1, 2)
    assert (result.words, result.utterances, result.dropped) == (8, 2, 0)
    assert result.wer == pytest.approx(50.0)  # percent


def test_spelling_case_and_punctuation_are_not_errors():
    assert word_error_rate(["The neighbour can't, Dr. Grey."], ["the neighbor can not doctor gray"]).wer == 0
    assert word_error_rate(["The colour: grey!"], ["the color gray"]).wer == 0


def test_empty_references_are_dropped_and_counted():
    result = word_error_rate(["Hmm.", "yes it is", ""], ["anything at all", "yes", "x"])
    assert (result.words, result.utterances, result.dropped) == (3, 1, 2)
    assert result.wer == pytest.approx(200 / 3)


def test_silence_is_all_deletions_and_babble_exceeds_a_hundred():
    assert word_error_rate(["one two", "three"], ["", "!"]).wer == 100
    assert word_error_rate(["yes"], ["no no no"]).wer == 300


def edit_distance(one, other):
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


sentences = st.lists(st.sampled_from(["red", "blue", "tree", "house"]), min_size=1, max_size=7)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=5))
def test_agrees_with_edit_distance(pairs):
    result = word_error_rate([" ".join(a) for a, _ in pairs], [" ".join(b) for _, b in pairs])
    wanted = sum(edit_distance(a, b) for a, b in pairs)
    assert result.substitutions + result.deletions + result.insertions == wanted
    assert result.wer == pytest.approx(100 * wanted / sum(len(a) for a, _ in pairs))


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ([], [], "none of the 0 references"),
        (["!?", "um"], ["a", "b"], "none of the 2 references has a word"),
        (["a"], ["a", "b"], "1 references, but 2 hypotheses"),
    ],
)
def test_refusals(references, hypotheses, message):
    with pytest.raises(UserError, match=message):
        word_error_rate(references, hypotheses)
