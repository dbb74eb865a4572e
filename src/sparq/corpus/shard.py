"""From planned utterances to a table of units: the one function that any engine runs, here or on many machines.

:func:`build_shard` takes items and a codebook and gives an Arrow table, with no state besides the models that a process
has loaded once. The same items and codebook give the same table, whoever computes it.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import soundfile

from sparq.corpus.imagined import load_readers
from sparq.corpus.plan import Item
from sparq.corpus.table import SCHEMA, SKIPPED
from sparq.errors import UserError
from sparq.speech.audio import RATE, load_audio
from sparq.speech.augmentation import disturb
from sparq.speech.encoder import Encoder, load_encoder
from sparq.speech.level import levelled
from sparq.speech.units import Codebook, UnitExtractor
from sparq.speech.views import other_views
from sparq.speech.voice import Utterance, Voice
from sparq.speech.voices import load_voice

_SPEECH = (
    "audio",
    "start",
    "seconds",
    "channel",
    "voice",
    "text",
    "speed",
    "seed",
)  # what makes the waveform of an item
_TOGETHER = 32  # utterances held in memory at a time

_voice = functools.cache(load_voice)
cached_encoder = functools.cache(load_encoder)
_readers = functools.cache(load_readers)


def build_shard(items: Sequence[Item], codebook: Codebook) -> pa.Table:
    """Voice or read utterances, and make units of them; text is read in imagination, or stays as it is.

    Args:
        items: from a plan.
        codebook: whose encoder is loaded once in a process.

    Returns:
        A table of :data:`SCHEMA`, a row for every item that could be used, in order. Its metadata holds, under
        :data:`SKIPPED`, the id of each other item and the reason.

    Raises:
        UserError: a package for a voice or the encoder is missing.
        ArtifactMismatchError: the codebook was made for another encoder.
    """
    encoder = cached_encoder(codebook.encoder_name, codebook.layers)
    extractor = UnitExtractor(encoder, codebook)
    rows: list[dict[str, object]] = []
    skipped: list[tuple[str, str]] = []
    for spoken in _speak(items, encoder, skipped):
        units = iter(extractor.extract([said.waveform for _, said in spoken if said is not None]))
        for item, said in spoken:
            its_units = None if said is None else next(units).astype(np.uint16)
            views = None
            if said is not None and item.views > 1:
                (views,) = other_views(extractor, [said.waveform], item.views)
            starts: Sequence[int] | np.ndarray | None
            ends: Sequence[int] | np.ndarray | None
            starts, ends = _word_frames(said, item.text, encoder)
            speaker = item.speaker
            if item.readers is not None:
                imagined = _readers(item.readers).read(item.text or "", np.random.default_rng(item.seed))
                if imagined is None:
                    skipped.append((item.id, f"{item.readers}: no reader says such phones"))
                    continue
                speaker, its_units = imagined.reader, imagined.units.astype(np.uint16)
                starts, ends = imagined.starts, imagined.ends
            rows.append(
                {
                    "id": item.id,
                    "source": item.source,
                    "split": item.split,
                    "text": item.text,
                    "speaker": speaker,
                    "disturbed": item.disturbance is not None,
                    "seconds": 0.0 if said is None else len(said.waveform) / RATE,
                    "units": its_units,
                    "word_starts": starts,
                    "word_ends": ends,
                    "audio": _flac(said.waveform) if item.keep_audio and said is not None else None,
                    "views": None if views is None else [its.astype(np.uint16) for its in views],
                }
            )
    metadata = {SKIPPED: json.dumps(skipped).encode()}
    return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))


def shard_features(
    items: Sequence[Item], encoder: Encoder
) -> tuple[list[tuple[Item, Utterance, np.ndarray]], list[tuple[str, str]]]:
    """Voice or read utterances, and give them with their features float32 [frames, dimension], to fit a codebook on.

    Returns:
        Items that could be used, what was heard and its features; and id and reason of each other item.
    """
    skipped: list[tuple[str, str]] = []
    made = []
    for spoken in _speak(items, encoder, skipped):
        heard = [(item, said) for item, said in spoken if said is not None]
        features = encoder.encode([said.waveform for _, said in heard])
        made += [(item, said, its) for (item, said), its in zip(heard, features, strict=True)]
    return made, skipped


_Spoken = tuple[Item, Utterance | None]


def _speak(items: Sequence[Item], encoder: Encoder, skipped: list[tuple[str, str]]) -> Iterator[list[_Spoken]]:
    """Yield batches of items with what is heard, None for text alone; what cannot be used goes to ``skipped``."""
    for i in range(0, len(items), _TOGETHER):
        spoken: list[_Spoken] = []
        for item in items[i : i + _TOGETHER]:
            if spoken and _same_speech(item, spoken[-1][0]):
                spoken.append((item, spoken[-1][1]))
                continue
            voice = None if item.voice is None else _voice(item.voice)  # a missing package is no reason to skip
            try:
                spoken.append((item, _utterance(item, voice)))
            except UserError as error:
                skipped.append((item.id, str(error)))
        batch = []
        for item, said in _disturbed(spoken):
            if said is None or encoder.frames(len(said.waveform)):
                batch.append((item, said))
            else:
                skipped.append((item.id, f"too short ({len(said.waveform) / RATE:.3f} s)"))
        if batch:
            yield batch


def _same_speech(a: Item, b: Item) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in _SPEECH)


def _another(a: Item, b: Item) -> bool:
    """Whether two items say something else; of speech alone nobody knows what it says."""
    return a.text != b.text or (a.text is None and not _same_speech(a, b))


def _disturbed(spoken: Sequence[_Spoken]) -> Iterator[_Spoken]:
    """Disturb the utterances of a batch; babble is made of those in it that say something else."""
    for item, said in spoken:
        if item.disturbance is None or said is None:
            yield item, said
            continue
        babble = item.disturbance.noise == "babble"
        others = [other.waveform for its, other in spoken if babble and other is not None and _another(its, item)]
        yield item, said.disturbed(disturb(said.waveform, item.disturbance, others), item.disturbance.rate)


def _utterance(item: Item, voice: Voice | None) -> Utterance | None:
    if not item.heard:
        return None
    if voice is not None:
        assert item.text is not None
        return voice.speak(item.text, item.speed, item.seed)
    assert item.audio is not None
    waveform = load_audio(item.audio, start=item.start, seconds=item.seconds, channel=item.channel)
    if not waveform.any():
        raise UserError(f"{item.audio}: is silent")
    return Utterance(levelled(waveform), None)  # as listening does


def _word_frames(
    said: Utterance | None, text: str | None, encoder: Encoder
) -> tuple[list[int], list[int]] | tuple[None, None]:
    """Word times in frames; none where the voice told none, or of other words than the text has."""
    if said is None or said.words is None or text is None or len(said.words) != len(text.split()):
        return None, None
    frames = encoder.frames(len(said.waveform))

    def frame(seconds: float) -> int:
        return min(frames, round(seconds * RATE / encoder.hop))

    return [frame(word.start) for word in said.words], [frame(word.end) for word in said.words]


def _flac(waveform: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.clip(waveform, -1.0, 1.0), RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()
