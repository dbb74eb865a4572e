"""Long texts cut where a reader would breathe, into phrases that a model was trained on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_ENDINGS = (re.compile(r"[.!?…]['\"”’)]*$"), re.compile(r"[,;:–—]$"), re.compile("$"))


def split_text(text: str, longest: int, fits: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Cut a text in two, and what is still too long again: behind a sentence, else a clause, else any word.

    Args:
        text: words between white space.
        longest: words that a phrase may have.
        fits: whether a phrase is short enough in other respects; a single word is never cut.

    Returns:
        The phrases in their order, their words separated by one space.
    """
    phrases: list[str] = []
    waiting = [text.split()]
    while waiting:
        words = waiting.pop()
        phrase = " ".join(words)
        if len(words) < 2 or (len(words) <= longest and fits(phrase)):
            phrases.append(phrase)
        else:
            cut = _cut(words)
            # What was put last is taken next, so the phrases come out in order.
            waiting += [words[cut:], words[:cut]]
    return phrases


def _cut(words: Sequence[str]) -> int:
    """Say before which word to cut, best in the middle third."""
    middle = len(words) / 2

    def rank(cut: int) -> tuple[bool, int, float]:
        ending = next(i for i, pattern in enumerate(_ENDINGS) if pattern.search(words[cut - 1]))
        away = abs(cut - middle)
        return away > len(words) / 3, ending, away

    return min(range(1, len(words)), key=rank)
