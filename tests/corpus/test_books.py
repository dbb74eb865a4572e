from __future__ import annotations

import pytest

from sparq.corpus.books import LONGEST, split_sentences
from sparq.corpus.readers import find_layout, read_corpus
from sparq.errors import UserError

BOOK = """# Title: The Pond

## CHAPTER I - A DUCK

Mr. Reed came up to Dr. P. Gray. "Is it _late_?" he asked. "It is *not*," she
said, and the [lamp](lamp.png) went out.[1]

---

> Good night!  'Who's there?' 'Nobody...' It was 7 o'clock.

* * *
![a duck](duck.png)
"""


def test_a_book_is_read_sentence_by_sentence(tmp_path):
    (tmp_path / "pond.md").write_text(BOOK, encoding="utf-8")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "second.md").write_text("One.\n\nTwo.\n", encoding="utf-8")
    assert find_layout(tmp_path) == find_layout(tmp_path / "pond.md") == "book"
    assert [(r.id, r.text) for r in read_corpus(tmp_path, audio=False)] == [
        ("more/second-1-1", "One."),
        ("more/second-3-1", "Two."),
        ("pond-5-1", "Mr. Reed came up to Dr. P. Gray."),
        ("pond-5-2", '"Is it late?" he asked.'),
        ("pond-5-3", '"It is not," she said, and the lamp went out.'),
        ("pond-10-1", "Good night!"),
        ("pond-10-2", "'Who's there?'"),
        ("pond-10-3", "'Nobody...'"),
        ("pond-10-4", "It was 7 o'clock."),
    ]


def test_plain_text_is_a_book_when_it_is_called_one(tmp_path):
    path = tmp_path / "pond.txt"
    path.write_text("It rained. The\nduck did not mind.\n", encoding="utf-8")
    assert [r.text for r in read_corpus(path, "book", audio=False)] == ["It rained.", "The duck did not mind."]
    assert len(list(read_corpus(path, audio=False))) == 2  # a text: one sentence a line


@pytest.mark.parametrize("words", [1, LONGEST, LONGEST + 1, 40, 100])
def test_long_sentences_are_cut_where_one_breathes(words):
    sentence = ", ".join(" ".join(["one", "two", "three"][:n]) for n in [3] * (words // 3) + [words % 3] if n) + "."
    parts = split_sentences(sentence)
    assert " ".join(parts) == sentence
    lengths = [len(part.split()) for part in parts]
    assert len(lengths) == -(-words // LONGEST) or max(lengths) - min(lengths) <= 6
    assert max(lengths) <= LONGEST


def test_what_has_no_place_to_breathe_stays_whole():
    sentence = " ".join(["word"] * 60) + "."
    assert split_sentences(sentence) == [sentence]


def test_a_folder_without_books_is_refused(tmp_path):
    (tmp_path / "notes.csv").write_text("a", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds no books \(\*\.md or \*\.txt\)"):
        list(read_corpus(tmp_path, "book", audio=False))
