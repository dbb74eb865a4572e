"""The corpus and its units, and the vocabulary over both."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparq.config.adaptation import TASKS
from sparq.config.augmentation import AugmentationConfig
from sparq.errors import UserError
from sparq.schema import did_you_mean, key

LAYOUTS = (
    "librispeech", "libritts", "mls", "vctk", "librilight", "ljspeech", "arctic", "an4", "lhotse", "sidecars", "audio",
    "jsonl", "tsv", "text", "words", "book",
)  # fmt: skip
KINDS = ("audio", "text", "audio-only", "text-only", "imagined")
_ONLY = {"audio-only": ("speechlm",), "text-only": ("textlm",), "imagined": ("textlm", "asr")}
"""The tasks that a kind can serve, where it cannot serve all."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The speech encoder whose features become units.

    Attributes:
        name: "moonshine-tiny" (travels in a package), or a HuBERT folder or hub name.
        layers: whose outputs are taken, side by side if there are several; null for those of a ready codebook, else the
            encoder's own default.
    """

    name: str = "moonshine-tiny"
    layers: tuple[int, ...] | None = key(None, minimum=0)


@dataclass(frozen=True, kw_only=True)
class UnitsConfig:
    """The codebook.

    Attributes:
        name: a ready codebook; null fits one.
        kind: what is clustered: "kmeans", an encoder's features (the paper), or "phonetic", what a classifier of phones
            says of each segment; it learns from voices that time their phones, of which there must be one (hibari,
            Kokoro), and aligns the texts of the others.
        clusters: number of units (paper, E.3: 200).
        fit_utterances: how many utterances it is fitted on.
        refine: whether a small network, trained on those utterances, corrects the classifier of phonetic units; a ready
            codebook's too, whose units keep their meaning.
        seed: of the choice of utterances and of the fitting.
    """

    name: str | None = None
    kind: str = key("kmeans", choices=("kmeans", "phonetic"))
    clusters: int = key(200, minimum=2)
    fit_utterances: int = key(400, minimum=1)
    refine: bool = False
    seed: int = key(0, minimum=0)

    def __post_init__(self) -> None:
        if self.refine and self.kind != "phonetic":
            raise UserError(f"refine: true (expected only with kind: phonetic, not {self.kind})")


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """The pieces that text and speech are written in.

    Attributes:
        name: a ready vocabulary; null makes one.
        mode: "joint", SentencePiece over text and units (the paper), or "extend", the model's own tokenizer plus units.
        size: number of pieces of a joint vocabulary, or of speech pieces behind a tokenizer.
        deduplicate: whether runs of one unit are merged.
        normalisation: of text: "none", "lower" (VoxtLM), or "letters" (letters and apostrophes, numbers as words).
    """

    name: str | None = None
    mode: str = key("joint", choices=("joint", "extend"))
    size: int = key(1000, minimum=16)
    deduplicate: bool = True
    normalisation: str = key("letters", choices=("none", "lower", "letters"))


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Speech, text, or both: recordings with transcripts, text voiced by a teacher, or one of the two alone.

    Attributes:
        kind: "audio" (recordings with transcripts), "text" (voiced by ``voices``), "audio-only" (recordings whose
            transcripts, if there are any, are left aside), "text-only" (text that nobody says), or "imagined" (text
            with the units in which ``readers`` would have said it, to be understood and not to be spoken).
        path: the file or folder.
        layout: how it is laid out, a name of ``LAYOUTS``, or ``lhotse:NAME`` for a recipe of Lhotse; null finds it out.
        parts: folders in it that are used alone, such as [train-clean-100]; none for all.
        name: how the source is called in the corpus; null for the name of the file or folder, without its suffix.
        tasks: which tasks it serves; null for all that it can, [] for none (it is there for the vocoder).
        voices: the teachers that read text out, drawn from for each utterance (docs/voices.md); "kokoro" and "flite"
            stand for all of theirs, and a name that is there twice is drawn twice as often.
        readers: a ready corpus in the same phonetic units, whose speakers read what is imagined.
        speeds: speaking rates, drawn from for each utterance; 1 is the voice's own.
        renderings: how often each training text is read out, by a voice and at a speed drawn anew, or imagined anew.
        copies: how often the corpus has each training utterance, every time disturbed anew.
        augmentation: how training utterances are disturbed, but for those that keep their audio.
        disturbed: whether the sentences held out are there a second time, all disturbed, as a source of their own,
            "<name>/disturbed"; in "<name>" they are clean in any case.
        phrases: how many phrases of one to five words are cut out of the text besides; they are a source of their own,
            "<name>/phrases".
        passages: text-only: neighbouring sentences become passages of at most so many words, as text is written;
            0 leaves them sentences.
        held_out: how many different sentences are kept for evaluation and never trained on, whoever says them; with
            ``phrases``, one phrase of each of them too.
        held_out_from: "anywhere" in the source, or its "end", where published corpora have their development part.
        limit: how many sentences are used at most, those held out included; null for all.
        keep_audio: how many training sentences keep their audio, which a vocoder is trained on; if any do, those held
            out keep theirs too, which it is measured on.
    """

    kind: str = key(choices=KINDS)
    path: str
    layout: str | None = None
    parts: tuple[str, ...] = ()
    name: str | None = key(None, pattern=r"[^/]+")
    tasks: tuple[str, ...] | None = key(None, choices=TASKS)
    voices: tuple[str, ...] = ("hibari",)
    readers: str | None = None
    speeds: tuple[float, ...] = key((1.0,), minimum=0.25, maximum=4)
    renderings: int = key(1, minimum=1)
    copies: int = key(1, minimum=1)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    disturbed: bool = False
    phrases: int = key(0, minimum=0)
    passages: int = key(0, minimum=0)
    held_out: int = key(0, minimum=0)
    held_out_from: str = key("anywhere", choices=("anywhere", "end"))
    limit: int | None = key(None, minimum=1)
    keep_audio: int = key(0, minimum=0)

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in LAYOUTS and not self.layout.startswith("lhotse:"):
            raise UserError(f"layout: {self.layout} ({did_you_mean(self.layout, LAYOUTS)})")
        if not self.speeds:
            raise UserError("speeds: [] (expected at least one speed)")
        if not self.voices:
            raise UserError("voices: [] (expected at least one voice)")
        if self.disturbed and not (self.held_out and self.augmentation.share):
            raise UserError(
                "disturbed: true (expected only where something is held out, and augmentation.share above 0)"
            )
        if self.limit is not None and self.held_out > self.limit:
            raise UserError(f"held_out: {self.held_out} (expected at most the limit, which is {self.limit})")
        if self.passages and (self.kind != "text-only" or self.limit is not None):
            raise UserError(f"passages: {self.passages} (expected 0 but for text-only without a limit)")
        self._check_kind()

    def _check_kind(self) -> None:
        """Refuse what the kind of source cannot have."""
        only = _ONLY.get(self.kind, TASKS)
        if self.tasks is not None and set(self.tasks) - set(only):
            raise UserError(f"tasks: {list(self.tasks)} (expected [{', '.join(only)}], all that {self.kind} can serve)")
        if self.kind in ("text-only", "imagined") and (self.keep_audio or self.copies > 1 or self.augmentation.share):
            raise UserError(f"kind: {self.kind} (expected without keep_audio, copies and augmentation: nobody says it)")
        if (self.readers is None) == (self.kind == "imagined"):
            raise UserError(
                f"readers: {self.readers or 'null'} (expected a corpus for kind: imagined, and for no other)"
            )
        if self.held_out and self.kind == "imagined":
            raise UserError(f"held_out: {self.held_out} (expected 0 for imagined: nothing is measured on it)")
        if self.renderings > 1 and self.kind not in ("text", "imagined"):
            raise UserError(
                f"renderings: {self.renderings} (expected 1 for {self.kind}, which no voice reads; see copies)"
            )
        if self.phrases and self.kind != "text":
            raise UserError(
                f"phrases: {self.phrases} (expected 0 for {self.kind}: phrases are cut out of text that is voiced)"
            )

    @property
    def serves(self) -> tuple[str, ...] | None:
        """The tasks that its utterances are meant for; None for all that they can serve."""
        return _ONLY.get(self.kind) if self.tasks is None else self.tasks


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What the model learns from.

    Attributes:
        name: the folder of a ready corpus, of which the other keys then say nothing; null makes one.
        sources: where speech and text come from.
        encoder: makes features of speech.
        units: makes units of features.
        processes: how many processes voice and encode; what comes out is the same for any number.
        limit: how many utterances over all sources at most, in the sources' proportions; null for all.
        views: in how many ways speech that is held out is heard (:mod:`sparq.speech.views`); whoever is scored on it
            listens to all of them, as ``sparq transcribe`` does to four.
        seed: of every random choice (voices, speeds, disturbances, phrases, the held-out part).
    """

    name: str | None = None
    sources: tuple[SourceConfig, ...] = ()
    encoder: EncoderConfig = EncoderConfig()
    units: UnitsConfig = UnitsConfig()
    processes: int = key(2, minimum=1)
    limit: int | None = key(None, minimum=1)
    views: int = key(1, minimum=1, maximum=4)
    seed: int = key(0, minimum=0)

    def __post_init__(self) -> None:
        if not self.sources and self.name is None:
            raise UserError("sources: [] (expected at least one source, or the name of a ready corpus)")
