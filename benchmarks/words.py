"""Write down the words of English that are worth teaching a small model to spell, a line each, the commonest first.

    pip install wordfreq
    python benchmarks/words.py --first 1500 --often 25000 --last 50000 > words.txt

They are those that a pronouncing lexicon has (hibari's), or has without an ending. The commonest are in every sentence
and left out; up to ``--often`` a word is there twice, and with layout ``words`` two sentences say it. The order of
frequency is wordfreq's (data CC BY-SA 4.0).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from importlib import resources

WORD = re.compile(r"[a-z]{3,}('[a-z]+)?")
LOOKED_AT = 120_000
# Ending → what stands in its place in the word that the lexicon has.
ENDINGS = {
    "'s": ("",), "s": ("",), "es": ("",), "ies": ("y",), "ed": ("", "e"), "ied": ("y",), "ing": ("", "e"), "ly": ("",),
    "er": ("", "e"), "ers": ("", "e"), "est": ("", "e"), "ness": ("",),
}  # fmt: skip


def lexicon() -> set[str]:
    """The words whose pronunciation hibari knows."""
    known: set[str] = set()
    for part in ("gold", "silver"):
        file = resources.files("hibari") / "assets" / f"lexicon_us_{part}.json.gz"
        known |= {word.lower() for word in json.loads(gzip.decompress(file.read_bytes()))}
    return known


def pronounced(word: str, known: set[str]) -> bool:
    """Whether a word is known, or is without an ending, of which a consonant may be doubled (``rob``, ``robbed``)."""
    stems = [(word.removesuffix(end), fillings) for end, fillings in ENDINGS.items() if word.endswith(end)]
    return (
        word in known
        or any(len(stem + filling) > 2 and stem + filling in known for stem, fillings in stems for filling in fillings)
        or any(len(stem) > 3 and stem[-1] == stem[-2] and stem[:-1] in known for stem, _ in stems)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=1_500, help="so many of the commonest are left out")
    parser.add_argument("--often", type=int, default=25_000, help="up to this rank a word is there twice")
    parser.add_argument("--last", type=int, default=50_000, help="the last rank")
    given = parser.parse_args()
    try:
        from wordfreq import top_n_list
    except ImportError:
        sys.exit("wordfreq is not installed; run: pip install wordfreq")
    known = lexicon()
    words = [word for word in top_n_list("en", LOOKED_AT) if WORD.fullmatch(word) and pronounced(word, known)]
    print("\n".join(words[given.first : given.last] + words[given.first : given.often]))


if __name__ == "__main__":
    main()
