"""What a corpus will hold, decided before anything is voiced or read: who says what, disturbed how, held out or not.

A sentence that is held out in any source is trained on in none, whoever says it. Every choice follows from the seed
and the names alone, so the same settings and files always give the same plan.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sparq.artifacts import fingerprint, read_manifest
from sparq.assets import resolve
from sparq.config import AugmentationConfig, CorpusConfig, SourceConfig
from sparq.corpus.recording import Recording
from sparq.corpus.sentences import (
    chance_of,
    choose,
    cut_phrases,
    join_passages,
    read_sentences,
    sentence_key,
    source_names,
)
from sparq.errors import UserError
from sparq.speech.augmentation import Disturbance, draw_disturbance
from sparq.speech.voices import members

LARGEST_SHARD, SMALLEST_SHARD = 128, 8  # utterances
FEWEST_SHARDS = 32  # as far as the smallest shard allows

Split = Literal["train", "held_out"]


@dataclasses.dataclass(frozen=True)
class Item:
    """An utterance to be made.

    Attributes:
        id: unique in the corpus; begins with the source.
        source: name of its source.
        split: "train" or "held_out".
        text: what is said, or None where there is speech alone.
        speaker: who says it, where that is known.
        audio: the recording, or None where ``voice`` reads the text out or nobody does.
        start, seconds, channel: what of the recording it is (:class:`sparq.corpus.recording.Recording`).
        voice: the teacher, or None for a recording and for text alone.
        speed: the teacher's.
        seed: of the noise in the teacher's voice, or of what is imagined.
        keep_audio: whether the corpus keeps the waveform.
        disturbance: what happens to the waveform, or None.
        views: in how many ways it is heard.
        readers: the corpus whose readers read the text in imagination, or None.
    """

    id: str
    source: str
    split: Split
    text: str | None
    speaker: str | None
    audio: Path | None = None
    start: float = 0.0
    seconds: float | None = None
    channel: int | None = None
    voice: str | None = None
    speed: float = 1.0
    seed: int = 0
    keep_audio: bool = False
    disturbance: Disturbance | None = None
    views: int = 1
    readers: Path | None = None

    @property
    def heard(self) -> bool:
        """Whether there is speech in it."""
        return self.audio is not None or self.voice is not None


@dataclasses.dataclass(frozen=True)
class Plan:
    """The utterances to be made, the sources evenly mixed.

    Attributes:
        items: in the order in which they are made.
        left_out: reason → how many sentences of the sources are not among them.
    """

    items: tuple[Item, ...]
    left_out: dict[str, int]

    @property
    def shards(self) -> list[tuple[Item, ...]]:
        """The items in parts of equal size: small ones for small corpora, so that every process has work."""
        size = min(LARGEST_SHARD, max(SMALLEST_SHARD, len(self.items) // FEWEST_SHARDS))
        return [self.items[i : i + size] for i in range(0, len(self.items), size)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all items; recordings count by path and size; disturbance, views and readers where there are any."""
        apart = ("audio", "disturbance", "views", "readers")
        readers = {its: read_manifest(its, "corpus").fingerprint for its in self.readers}
        names = [field.name for field in dataclasses.fields(Item) if field.name not in apart]
        rows = [
            [
                *(getattr(item, name) for name in names),
                item.audio and [str(item.audio), item.audio.stat().st_size],
                *(dataclasses.astuple(item.disturbance) if item.disturbance else ()),
                *(("views", item.views) if item.views > 1 else ()),
                *(("readers", readers[item.readers]) if item.readers else ()),
            ]
            for item in self.items
        ]
        return fingerprint(rows)

    @property
    def readers(self) -> list[Path]:
        """The corpora whose readers read in imagination."""
        return sorted({item.readers for item in self.items if item.readers is not None})

    def to_fit(self, count: int) -> tuple[Item, ...]:
        """Give the first ``count`` training items with speech, spread over the sources, to fit a codebook on."""
        return tuple(item for item in self.items if item.split == "train" and item.heard)[:count]


def plan_corpus(config: CorpusConfig, *, skip_untranscribed: bool = False) -> Plan:
    """Read the texts of all sources and decide what the corpus will hold.

    Args:
        config: what it is made of.
        skip_untranscribed: leave out recordings without a transcript and count them, instead of refusing them.

    Raises:
        UserError: a source cannot be read, two have one name, or one has fewer sentences than it is to hold out.
    """
    names = [source_names(source)[0] for source in config.sources]
    for name, uses in Counter(names).items():
        if uses > 1:
            raise UserError(f"sources: two are called {name!r} (give one of them another name)")
    left_out: Counter[str] = Counter()
    read = [
        read_sentences(config, source, name, left_out, skip_untranscribed=skip_untranscribed)
        for source, name in zip(config.sources, names, strict=True)
    ]
    choices = [
        choose(s, sentences, chance_of(config, n))
        for s, n, sentences in zip(config.sources, names, read, strict=True)
    ]  # fmt: skip
    held_phrases = [
        cut_phrases(chosen, len(chosen) if source.phrases else 0, chance_of(config, f"{name}/held-out phrases"), set())
        for source, name, (chosen, _) in zip(config.sources, names, choices, strict=True)
    ]
    kept = [
        *(sentence for chosen, _ in choices for sentence in chosen),
        *(p for phrases in held_phrases for p in phrases),
    ]
    forbidden = {sentence_key(sentence) for sentence in kept}

    groups: list[list[tuple[Item, ...]]] = []
    whole = zip(config.sources, names, read, choices, held_phrases, strict=True)
    for source, name, sentences, (chosen, others), phrases in whole:
        free = [sentence for sentence in others if sentence_key(sentence) not in forbidden]
        left_out["held out"] += len(others) - len(free)
        room = len(free) if source.limit is None else source.limit - len(chosen)
        left_out["limit"] += max(0, len(free) - room)
        training = join_passages(sentences, free, source.passages) if source.passages else free[:room]
        cut = cut_phrases(training, source.phrases, chance_of(config, f"{name}/phrases"), forbidden)
        groups += [
            _training(config, source, name, training, source.keep_audio),
            _training(config, source, f"{name}/phrases", cut),
            _held_out(config, source, name, chosen, keep_audio=source.keep_audio > 0, twice=source.disturbed),
            _held_out(config, source, f"{name}/phrases", phrases),
        ]
    items = _mix(groups)
    used = items[: config.limit]
    left_out["limit"] += len(items) - len(used)
    if not used:
        raise UserError(f"{config.sources[0].path}: there is nothing in it that could be used")
    return Plan(tuple(used), {reason: count for reason, count in left_out.items() if count})


def _training(
    config: CorpusConfig, source: SourceConfig, name: str, sentences: Sequence[Recording], keep_audio: int = 0
) -> list[tuple[Item, ...]]:
    """Plan the utterances of each sentence: its renderings, and copies of each that are disturbed anew."""
    planned = []
    for i, sentence in enumerate(sentences):
        utterances: list[Item] = []
        for rendering in range(source.renderings):
            said = _item(config, source, name, "train", sentence, f"~{rendering + 1}" if rendering else "")
            for copy in range(source.copies):
                item = dataclasses.replace(said, id=f"{said.id}#{copy + 1}" if copy else said.id)
                kept = i < keep_audio and not utterances
                utterances.append(
                    dataclasses.replace(item, keep_audio=True)
                    if kept
                    else _disturbed(config, source.augmentation, item)
                )
        planned.append(tuple(utterances))
    return planned


def _held_out(
    config: CorpusConfig,
    source: SourceConfig,
    name: str,
    sentences: Sequence[Recording],
    *,
    keep_audio: bool = False,
    twice: bool = False,
) -> list[tuple[Item, ...]]:
    """Plan sentences as they are and, if that is asked for, a second time as another source, all of them disturbed."""
    planned: list[tuple[Item, ...]] = []
    always = dataclasses.replace(source.augmentation, share=1.0)
    for sentence in sentences:
        item = dataclasses.replace(_item(config, source, name, "held_out", sentence), views=config.views)
        again = dataclasses.replace(item, id=f"{name}/disturbed/{sentence.id}", source=f"{name}/disturbed")
        item = dataclasses.replace(item, keep_audio=keep_audio)
        planned.append((item, _disturbed(config, always, again)) if twice else (item,))
    return planned


def _item(
    config: CorpusConfig, source: SourceConfig, name: str, split: Split, sentence: Recording, rendering: str = ""
) -> Item:
    text = None if source.kind == "audio-only" else sentence.text
    item = Item(f"{name}/{sentence.id}{rendering}", name, split, text, sentence.speaker)
    if source.kind == "text-only":
        return item
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{item.id}".encode()).digest()[:4], "little")
    if source.readers is not None:
        return dataclasses.replace(item, readers=resolve(source.readers), seed=seed)
    if source.kind != "text":
        start, seconds, channel = sentence.start, sentence.seconds, sentence.channel
        return dataclasses.replace(item, audio=sentence.audio, start=start, seconds=seconds, channel=channel)
    speed = chance_of(config, f"{item.id}/speed").choice(source.speeds)
    chance = chance_of(config, f"{item.id}/voice")
    voice = chance.choice(members(chance.choice(source.voices)))
    return dataclasses.replace(item, speaker=voice, voice=voice, speed=speed, seed=seed)


def _disturbed(config: CorpusConfig, how: AugmentationConfig, item: Item) -> Item:
    chance = chance_of(config, f"{item.id}/disturbance")
    return dataclasses.replace(item, disturbance=draw_disturbance(how, chance))


def _mix(groups: Sequence[Sequence[tuple[Item, ...]]]) -> list[Item]:
    """Interleave groups, each spread evenly over the whole, so that any beginning has a share of every group.

    What a group has together stays together: the utterances of one sentence, whose waveform is then made once.
    """
    placed = [(i / len(group), which, items) for which, group in enumerate(groups) for i, items in enumerate(group)]
    return [item for _, _, items in sorted(placed, key=lambda place: place[:2]) for item in items]
