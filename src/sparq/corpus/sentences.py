"""The sentences of a source: those that can be used, those held out, and phrases cut out of them."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence

from sparq.assets import resolve
from sparq.config import CorpusConfig, SourceConfig
from sparq.corpus.readers import read_corpus
from sparq.corpus.recording import Recording
from sparq.errors import UserError
from sparq.language.writing import normalise_text

LONGEST_PHRASE = 5  # words
_PUNCTUATION = " ,;:-—–\"'“”‘()[]"
_TRIES = 20  # to cut a phrase that may be used out of a sentence


def source_names(source: SourceConfig) -> tuple[str, ...]:
    """Give the name of a source in the corpus, and those of its phrases and of what is disturbed."""
    name = source.name or resolve(source.path).absolute().stem
    return name, f"{name}/phrases", f"{name}/disturbed"


def sentence_key(recording: Recording) -> str:
    """What makes two recordings the same sentence: letters, digits and apostrophes; without a text the place."""
    if recording.text is None:
        return f"/{recording.audio}/{recording.start}/{recording.id}"
    return normalise_text(recording.text, "letters")


def chance_of(config: CorpusConfig, name: str) -> random.Random:
    """Give the random numbers of one choice, the same for the same seed and name."""
    return random.Random(f"{config.seed}/{name}")


def read_sentences(
    config: CorpusConfig,
    source: SourceConfig,
    name: str,
    left_out: Counter[str],
    *,
    skip_untranscribed: bool = False,
) -> list[Recording]:
    """Read a source, without texts that a vocabulary could not write; what is left out is counted by its reason.

    Args:
        config: of the corpus.
        source: which one.
        name: of the source.
        left_out: where that is counted.
        skip_untranscribed: leave out recordings without a transcript, where there should be one, and refuse them not.

    Raises:
        UserError: it cannot be read, or has fewer different sentences than it is to hold out.
    """
    speech, text = source.kind in ("audio", "audio-only"), source.kind != "audio-only"
    skipped = left_out if skip_untranscribed else None
    found: Iterable[Recording] = read_corpus(
        resolve(source.path), source.layout, source.parts, audio=speech, text=text, left_out=skipped
    )
    if source.limit is not None and source.kind in ("audio-only", "text-only"):
        # These may be tens of millions of lines; no more than the limit is kept in memory, and looked at any closer.
        found, passed = _at_most(source.limit, found, source.held_out_from, chance_of(config, f"{name}/read"))
        left_out["limit"] += passed
    sentences = []
    for recording in found:
        if speech and recording.audio is None:
            raise UserError(f"{source.path}: {recording.id} has no audio (for text, the kind is text or text-only)")
        if _writable(recording):
            sentences.append(recording)
        elif not text:  # what is said is not wanted, so it may be in any script
            sentences.append(dataclasses.replace(recording, text=None))
        else:
            left_out["no words, or characters that stand for units"] += 1
    if source.held_out > len({sentence_key(sentence) for sentence in sentences}):
        raise UserError(
            f"source {name}: held_out: {source.held_out} (expected at most its number of different sentences)"
        )
    return sentences


def _writable(recording: Recording) -> bool:
    try:
        return bool(sentence_key(recording))
    except UserError:
        return False


def _at_most(count: int, found: Iterable[Recording], where: str, chance: random.Random) -> tuple[list[Recording], int]:
    """Keep ``count`` of all, the last or any of them with the same chance, and say how many were passed over."""
    total = 0
    kept: list[Recording] = []
    last: deque[Recording] = deque(maxlen=count)
    for total, recording in enumerate(found, start=1):
        if where == "end":
            last.append(recording)
        elif total <= count:
            kept.append(recording)
        elif (place := chance.randrange(total)) < count:  # reservoir sampling
            kept[place] = recording
    return kept or list(last), max(0, total - count)


def choose(
    source: SourceConfig, sentences: Sequence[Recording], chance: random.Random
) -> tuple[list[Recording], list[Recording]]:
    """Part sentences into those held out, all different, and the others in random order."""
    order = list(sentences)
    if source.held_out_from == "anywhere":
        chance.shuffle(order)
    held: dict[str, Recording] = {}
    others = []
    for sentence in reversed(order):
        if len(held) < source.held_out and sentence_key(sentence) not in held:
            held[sentence_key(sentence)] = sentence
        else:
            others.append(sentence)
    chance.shuffle(others)
    return list(held.values()), others


def cut_phrases(
    sentences: Sequence[Recording], count: int, chance: random.Random, forbidden: set[str]
) -> list[Recording]:
    """Cut phrases of one to five words out of sentences, going round until there are ``count``."""
    if not sentences:
        return []
    phrases = []
    for i in range(count):
        sentence = sentences[i % len(sentences)]
        assert sentence.text is not None  # only sources of text have phrases
        words = sentence.text.split()
        for _ in range(_TRIES):
            length = chance.randint(1, min(LONGEST_PHRASE, len(words)))
            start = chance.randint(0, len(words) - length)
            text = " ".join(words[start : start + length]).strip(_PUNCTUATION)
            phrase = Recording(f"{sentence.id}-{i // len(sentences)}", None, text)
            if sentence_key(phrase) and sentence_key(phrase) not in forbidden:
                phrases.append(phrase)
                break
    return phrases


def join_passages(read: Sequence[Recording], used: Sequence[Recording], words: int) -> list[Recording]:
    """Join what was read one behind the other to passages of at most so many words, called by what each begins with.

    Args:
        read: all sentences of the source.
        used: those of them that may be in a passage; a passage ends where one may not. They give the order, too.
        words: of a passage; a sentence that is longer stays alone.
    """
    free = {id(sentence): place for place, sentence in enumerate(used)}
    passages: list[list[Recording]] = []
    room = 0
    for sentence in read:
        assert sentence.text is not None  # only sources of text have passages
        length = len(sentence.text.split())
        if id(sentence) not in free:
            room = 0
            continue
        if length > room:
            passages.append([])
            room = words
        passages[-1].append(sentence)
        room -= length
    passages.sort(key=lambda passage: free[id(passage[0])])
    return [dataclasses.replace(p[0], text=" ".join(str(its.text) for its in p)) for p in passages]
