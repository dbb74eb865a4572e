"""Speech that nobody spoke: the units in which the readers of a corpus would have said any text.

Speech is dear and text is not. A corpus shows into which phonetic units each of its readers turned each phone between
its neighbours: mostly one, sometimes another, none where a phone was swallowed, two or three where it was drawn out or
taken for something else. What is drawn from that for the phones of a text, anew each time, a model finds as hard to
understand as the readers themselves before it has learnt from such speech (results/by_hand.json, imagined_reading), and
it costs a hundredth of voicing the text. A model learns words by it that its corpus has not, in the voices of people
and through noise.

It is for listening alone. Units are drawn phone by phone, each knowing its neighbours and no more, and who learnt to
speak from them would mumble.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sparq.errors import UserError
from sparq.speech.phones import BREAKS, END, MARK, PAUSE, WORD, phones_and_breaks
from sparq.speech.units import Codebook, merge_repeats

_LONGEST = 3  # units of one phone
_SPLIT = 0.5  # nats for each unit of a phone but the first
_SWALLOWED = 4.0  # nats for a phone without units
_UNHEARD = {WORD: 0.0, MARK: 1.0, END: 1.5}  # nats for a break without a pause
_SURPRISE = 1.5  # nats a phone, above which an utterance is not believed to say its text
_LEAST = 1e-4  # probability of a phone in a unit
_FAMILIAR = 4  # times that a phone was heard between its neighbours, below which fewer of them are asked for
_REMEMBERED = 400  # ways of one phone in one place


@dataclasses.dataclass(frozen=True)
class Told:
    """An utterance that readers are learnt from.

    Attributes:
        reader: who says it, or where it is from.
        text: what is said.
        units: raw, int64 ``[frames]``.
    """

    reader: str
    text: str
    units: np.ndarray


@dataclasses.dataclass(frozen=True)
class Imagined:
    """A text as if it had been read.

    Attributes:
        reader: who would have read it.
        units: raw, int64 ``[frames]``.
        starts, ends: first frame of each word of ``text.split()`` and the one after its last, int64; or None, where
            the words that are said are not those that are written.
    """

    reader: str
    units: np.ndarray
    starts: np.ndarray | None
    ends: np.ndarray | None


class ImaginedReaders:
    """Readers of a corpus, who can read any text.

    Args:
        codebook: of phonetic units, which tells how much each unit sounds like each phone.

    Raises:
        UserError: units that are not phonetic.
    """

    def __init__(self, codebook: Codebook) -> None:
        if codebook.classifier is None:
            raise UserError("readers: have plain units (expected phonetic ones, which tell phones apart)")
        shares = np.square(codebook.centroids.astype(np.float64))
        shares /= shares.sum(axis=1, keepdims=True)
        costs = -np.log(np.maximum(shares.T, _LEAST))
        self._costs = dict(zip(codebook.classifier.phones, costs, strict=True))
        self._ways: dict[tuple[object, ...], list[np.ndarray]] = {}
        self._told: Counter[str] = Counter()

    @classmethod
    def learn(cls, codebook: Codebook, utterances: Iterable[Told], seed: int = 0) -> ImaginedReaders:
        """Learn how each reader says each phone.

        Args:
            codebook: what made the units.
            utterances: of all readers; one whose units do not sound like its text is passed over.
            seed: of which ways are remembered where there are very many.

        Raises:
            UserError: units that are not phonetic, or nothing that could be learnt from.
        """
        readers, random = cls(codebook), np.random.default_rng(seed)
        for told in utterances:
            symbols = phones_and_breaks(told.text)
            ways = readers.align(symbols, told.units)
            if ways is None:
                continue
            readers._told[told.reader] += 1
            for places, way in zip(_places(symbols), ways, strict=True):
                for who, place in itertools.product((told.reader, None), places):
                    known = readers._ways.setdefault((who, *place), [])
                    if len(known) < _REMEMBERED:
                        known.append(way)
                    elif random.random() < 0.1:
                        known[random.integers(_REMEMBERED)] = way
        if not readers._told:
            raise UserError("readers: none of their utterances sounds like its text")
        return readers

    def read(self, text: str, random: np.random.Generator) -> Imagined | None:
        """Read a text as one of the readers would, each as likely as it is often heard; None if nobody knows how.

        Args:
            text: English.
            random: draws the reader, and each phone's units.
        """
        reader = str(random.choice(list(self._told), p=np.array([*self._told.values()]) / self._told.total()))
        symbols = phones_and_breaks(text)
        said: list[np.ndarray] = []
        for places in _places(symbols):
            ways = self._known(reader, places)
            if not ways and places[0][1] not in BREAKS:
                return None
            said.append(ways[random.integers(len(ways))] if ways else np.zeros(0, np.int64))
        ends = np.cumsum([len(its) for its in said])
        units = np.concatenate(said)
        breaks = [place for place, symbol in enumerate(symbols) if symbol in BREAKS]
        if not len(units) or len(breaks) - 1 != len(text.split()):
            return Imagined(reader, units, None, None) if len(units) else None
        return Imagined(reader, units, ends[breaks[:-1]], ends[np.array(breaks[1:]) - 1])

    def align(self, symbols: Sequence[str], units: np.ndarray) -> list[np.ndarray] | None:
        """Say which raw units belong to which phone or break (Viterbi); None if they do not sound like them.

        Args:
            symbols: of :func:`sparq.speech.phones.phones_and_breaks`.
            units: raw, int64 ``[frames]``.
        """
        merged, frames = merge_repeats(units)
        score = np.full(len(merged) + 1, np.inf)
        score[0] = 0.0
        taken = np.zeros((len(symbols), len(merged) + 1), np.int64)
        for row, symbol in enumerate(symbols):
            costs = self._costs.get(PAUSE if symbol in BREAKS else symbol)
            if costs is None:
                return None
            so_far = np.concatenate([[0.0], np.cumsum(costs[merged])])
            best = score + _UNHEARD.get(symbol, _SWALLOWED)
            for count in range(1, min(_LONGEST, len(merged)) + 1):
                longer = score[:-count] + so_far[count:] - so_far[:-count] + _SPLIT * (count - 1)
                better = longer < best[count:]
                best[count:][better] = longer[better]
                taken[row, count:][better] = count
            score = best
        if not score[-1] <= _SURPRISE * len(symbols):
            return None
        ends = np.concatenate([[0], np.cumsum(frames)])
        ways, place = [], len(merged)
        for row in reversed(range(len(symbols))):
            ways.append(units[ends[place - taken[row, place]] : ends[place]])
            place -= taken[row, place]
        return ways[::-1]

    def _known(self, reader: str, places: Sequence[tuple[str | None, str, str | None]]) -> list[np.ndarray]:
        """Give the ways of a phone in the narrowest place in which the reader said it often enough, else anybody."""
        found: list[np.ndarray] = []
        for who in (reader, None):
            for place in places:
                found = self._ways.get((who, *place), [])
                if len(found) >= _FAMILIAR:
                    return found
            if found:
                break
        return found


def _places(symbols: Sequence[str]) -> Iterator[tuple[tuple[str | None, str, str | None], ...]]:
    """Give each phone or break between its neighbours, then with the next, the last, and no neighbour alone.

    Speech runs on over the ends of words: a neighbour is the phone behind them. At other breaks it is none.
    """
    for place, symbol in enumerate(symbols):
        before, after = _neighbour(symbols, place, -1), _neighbour(symbols, place, 1)
        yield (before, symbol, after), (None, symbol, after), (before, symbol, None), (None, symbol, None)


def _neighbour(symbols: Sequence[str], place: int, step: int) -> str:
    beside = place + step
    if 0 < beside < len(symbols) - 1 and symbols[beside] == WORD:
        beside += step
    return END if not 0 <= beside < len(symbols) or symbols[beside] in BREAKS else symbols[beside]
