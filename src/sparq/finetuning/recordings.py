"""What a folder of recordings holds: minutes, sentences, sample rates, and how many sentences to hold out."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from sparq.artifacts import MANIFEST
from sparq.config import CorpusConfig, EncoderConfig, SourceConfig, UnitsConfig
from sparq.corpus.codebook import load_codebook
from sparq.corpus.corpus import Corpus
from sparq.corpus.readers import read_corpus
from sparq.corpus.recording import Recording
from sparq.errors import UserError
from sparq.language.writing import normalise_text
from sparq.speech.audio import RATE, read_header
from sparq.speech.views import VIEWS

HELD_OUT_SHARE, FEWEST_HELD_OUT, MOST_HELD_OUT = 0.1, 8, 100  # of the different sentences
MINUTES_A_PROCESS = 5  # of speech; with less than that for each, they would take longer to start than to listen


@dataclasses.dataclass(frozen=True)
class Recordings:
    """What a folder holds.

    Attributes:
        name: of the folder.
        utterances: recordings with a transcript.
        sentences: how many of the transcripts differ.
        seconds: of speech, as the files' headers tell.
        rates: samples a second → recordings that have so many.
        speakers: how many are named.
    """

    name: str
    utterances: int
    sentences: int
    seconds: float
    rates: Mapping[int, int]
    speakers: int

    @property
    def minutes(self) -> float:
        """Minutes of speech."""
        return self.seconds / 60

    @property
    def held_out(self) -> int:
        """How many different sentences to hold out: a tenth, at least 8 and at most 100."""
        return min(MOST_HELD_OUT, max(FEWEST_HELD_OUT, round(HELD_OUT_SHARE * self.sentences)))

    @property
    def warnings(self) -> list[str]:
        """What may disappoint in them."""
        low = {rate: count for rate, count in self.rates.items() if rate < RATE}
        if not low:
            return []
        rates = ", ".join(f"{rate:,}" for rate in sorted(low))
        told = (
            f"{sum(low.values())} of {self.utterances} recordings have fewer than {RATE:,} samples a second ({rates})"
        )
        return [f"{told}: their high sounds are missing, which costs accuracy"]


def look_at(folder: Path) -> Recordings:
    """Read the transcripts of a folder and the headers of its audio files; sound is not decoded.

    Recordings without a transcript are passed over here, and counted where the corpus is made of them.

    Raises:
        UserError: no such folder, nothing in it, no transcripts, text without recordings, or too few sentences to hold
            some out; what :func:`sparq.corpus.readers.read_corpus` refuses.
    """
    folder = Path(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        raise UserError(f"{folder}: is empty (expected recordings and their transcripts)")
    read = list(read_corpus(folder, left_out=Counter()))
    spoken = [recording for recording in read if recording.audio is not None]
    if len(spoken) < len(read):
        raise UserError(
            f"{folder}: {len(read) - len(spoken)} of {len(read)} sentences have no recording (sparq corpus --kind text "
            "has text read aloud)"
        )
    rates, seconds = _headers(spoken)
    return Recordings(
        folder.resolve().name,
        len(spoken),
        len({sentence_key(recording.text or "") for recording in spoken} - {""}),
        seconds,
        dict(rates),
        len({recording.speaker for recording in spoken if recording.speaker is not None}),
    )


def look_at_corpus(corpus: Corpus) -> Recordings:
    """Tell the same of a corpus that is ready."""
    texts = corpus.table["text"].to_pylist()
    speakers = {speaker for speaker in corpus.table["speaker"].to_pylist() if speaker is not None}
    return Recordings(
        corpus.folder.resolve().name,
        len(texts),
        len({sentence_key(text or "") for text in texts} - {""}),
        corpus.seconds,
        {},
        len(speakers),
    )


def sentence_key(text: str) -> str:
    """What makes two texts the same sentence; "" for one that cannot be written."""
    try:
        return normalise_text(text, "letters")
    except UserError:
        return ""


def is_corpus(folder: Path) -> bool:
    """Tell whether a folder is a corpus that ``sparq corpus`` made."""
    return (Path(folder) / MANIFEST).is_file()


def corpus_config(folder: Path, recordings: Recordings, held_out: int | None, model: Path) -> CorpusConfig:
    """Describe the corpus that a folder becomes, in the units of a model; it is scored as `sparq transcribe` listens.

    Args:
        folder: the recordings.
        recordings: what it holds.
        held_out: how many different sentences are held out; None for the default.
        model: folder of the SpeechLM.

    Raises:
        UserError: too few sentences are left to learn from.
    """
    count = recordings.held_out if held_out is None else held_out
    if not 0 < count <= recordings.sentences // 2:
        raise UserError(
            f"{folder}: of {recordings.sentences} different sentences {count} cannot be held out (expected at most "
            "half of them: record more, or hold out fewer)"
        )
    book = model / "codebook"
    name = str(book.resolve()) if book.is_dir() else "codebook"
    codebook, ships = load_codebook(name), load_codebook("codebook")
    if codebook.fingerprint == ships.fingerprint:
        name = "codebook"  # the same corpus for every model that has it
    source = SourceConfig(kind="audio", path=str(folder.resolve()), name="recordings", held_out=count)
    return CorpusConfig(
        sources=(source,),
        encoder=EncoderConfig(name=codebook.encoder_name, layers=codebook.layers),
        units=UnitsConfig(name=name),
        processes=max(1, min(os.cpu_count() or 1, int(recordings.minutes / MINUTES_A_PROCESS))),
        views=len(VIEWS),
    )


def _headers(recordings: Iterable[Recording]) -> tuple[Counter[int], float]:
    """Sample rates and seconds of all files; one that cannot be read is left to the corpus, which says why."""
    rates: Counter[int] = Counter()
    seconds = 0.0
    for recording in recordings:
        assert recording.audio is not None
        rate, duration = read_header(recording.audio)
        if rate:
            rates[rate] += 1
            seconds += duration - recording.start if recording.seconds is None else recording.seconds
    return rates, seconds
