"""Books: running prose in Markdown or plain text, cut into sentences that one breath can say.

A paragraph is what stands between blank lines. Headings, rules and marks of emphasis are not read out. A sentence of
more than ``LONGEST`` words is cut behind commas and their like, as a reader would breathe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sparq.corpus.recording import Found, Recording, files_below, lines_of
from sparq.errors import UserError

LONGEST = 24
"""Words of a sentence, beyond which it is cut where it can be: as many as a model of short clips is trained on."""

_SUFFIXES = (".md", ".markdown", ".txt")
_NOT_PROSE = re.compile(r"\s*(#|[-=*_~]{3,}\s*$|!\[|<!--|\|)")  # headings, rules, pictures, comments, tables
_MARKS = re.compile(r"^\s*(>|[-+*]\s|\d+\.\s)\s*|[*_`]|\[\^?\d+\]")  # of quotation, lists, emphasis and footnotes
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_TITLE = r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bMs\.)(?<!\b[A-Z]\.)"
_END = re.compile(rf"(?<=[.!?…])[\"'”’)]*{_TITLE}\s+(?=[\"'“‘(]*[A-Z0-9])")
_BREATH = re.compile(r"(?<=[,;:—])[\"'”’)]*\s+|(?<=—)|(?<=--)")


def read_book(path: Path) -> Found:
    """Read the books of a folder, or one book, a sentence at a time; a sentence's id is the book, its line and a count.

    Raises:
        UserError: a folder without ``*.md`` or ``*.txt``, or a book that cannot be read.
    """
    books = [path] if path.is_file() else sorted(file for file in files_below(path) if file.suffix in _SUFFIXES)
    if not books:
        raise UserError(f"{path}: holds no books (*.md or *.txt)")
    for book in books:
        name = book.name if path.is_file() else book.relative_to(path).as_posix()
        for paragraph, where in _paragraphs(book):
            line = where.rpartition(" ")[2]
            for count, sentence in enumerate(split_sentences(paragraph), start=1):
                yield Recording(f"{name.rpartition('.')[0]}-{line}-{count}", None, sentence), where


def split_sentences(paragraph: str, longest: int = LONGEST) -> list[str]:
    """Cut a paragraph into sentences, and those of more than ``longest`` words where one breathes, as evenly as may be.

    What has no place to breathe stays as long as it is. A quotation mark goes with the sentence that it ends.
    """
    sentences = []
    for sentence in _cut(_END, paragraph):
        words = len(sentence.split())
        aim = words / -(-words // longest) if words else 0  # of a part, when all are equally long
        part: list[str] = []
        for clause in _cut(_BREATH, sentence):
            held, more = sum(len(its.split()) for its in part), len(clause.split())
            if part and (held + more > longest or (held >= aim and words > longest)):
                sentences.append(" ".join(part))
                part = []
            part.append(clause)
        sentences.append(" ".join(part))
    return [sentence for sentence in sentences if any(map(str.isalnum, sentence))]


def _cut(where: re.Pattern[str], text: str) -> Iterator[str]:
    """Cut behind each match, white space at the ends aside."""
    start = 0
    for match in where.finditer(text):
        yield text[start : match.end()].strip()
        start = match.end()
    yield text[start:].strip()


def _paragraphs(book: Path) -> Iterator[tuple[str, str]]:
    """Yield paragraphs of prose, each in one line, and where each begins."""
    lines: list[str] = []
    begun, last = "", 0
    for line, where in lines_of(book):
        number = int(where.rpartition(" ")[2])
        prose = not _NOT_PROSE.match(line)
        if lines and (not prose or number > last + 1):
            yield " ".join(lines), begun
            lines = []
        if prose and (text := _MARKS.sub("", _LINK.sub(r"\1", line)).strip()):
            begun = begun if lines else where
            lines.append(text)
        last = number
    if lines:
        yield " ".join(lines), begun
