"""SpeechLM: a language model that listens, speaks and writes, with all that it needs to do so.

Which vocabulary and codebook the model was trained with is recorded in its own configuration when it is saved: the
pieces and units of others look alike and mean something else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from sparq.artifacts import Manifest, require_match
from sparq.errors import UserError
from sparq.language.folder import Parts, read_folder, write_folder
from sparq.language.generation import GenerationOptions
from sparq.language.limits import Limits
from sparq.language.listening import BATCH, Segment, listen, write_down
from sparq.language.prior import Prior
from sparq.language.rescoring import Rescoring
from sparq.language.speaking import Spoken, go_on, speak, stream
from sparq.language.vocabulary import Vocabulary
from sparq.language.writing_on import write_on
from sparq.speech.activity import Detector, load_detector
from sparq.speech.audio import check_waveform, load_audio
from sparq.speech.encoder import load_encoder
from sparq.speech.speaker_table import Speaker
from sparq.speech.units import Codebook, UnitExtractor, Units
from sparq.speech.views import VIEWS
from sparq.speech.vocoder import CHUNK, Vocoder

Audio = str | Path | IO[bytes] | np.ndarray
"""A file, or float32 [samples] at 16 kHz."""

RECORD = "sparq_parts"
CREATIVE = GenerationOptions(method="sample", top_p=0.9)
SPEAKING = GenerationOptions(method="sample", temperature=0.4, draws=5)
"""How text is said: five times, and that is spoken in which the model itself hears the text best."""


class SpeechLM:
    """A language model with its vocabulary, codebook and vocoder.

    Attributes:
        model: the transformers causal LM, in evaluation mode.
        vocabulary: what its ids mean.
        codebook: what its units mean.
        vocoder: what speaks its units, or None for a model that only listens and writes.
        limits: how long an utterance may be.
        prior_name: a language model that has read more of the same language, by the name that ``TextPrior.load``
            takes; it is saved with the model. None if there is none.
        prior: what is asked which of several transcripts is likely (``sparq.load`` sets it); None for the model itself.

    Raises:
        UserError: the parts were not made for each other.
    """

    def __init__(
        self,
        model: Any,
        vocabulary: Vocabulary,
        codebook: Codebook,
        vocoder: Vocoder | None = None,
        *,
        limits: Limits | None = None,
        prior_name: str | None = None,
        extractor: UnitExtractor | None = None,
        detector: Detector | None = None,
    ) -> None:
        """Put a model together.

        Args:
            model: see the class.
            vocabulary: see the class.
            codebook: see the class.
            vocoder: see the class.
            limits: see the class.
            prior_name: see the class.
            extractor: spares loading the codebook's encoder again.
            detector: what finds speech in recordings; Silero if None.
        """
        rows = model.get_input_embeddings().weight.shape[0]
        if rows < vocabulary.size:
            raise UserError(f"the model has {rows} embeddings, but its vocabulary {vocabulary.size} pieces")
        if vocabulary.units != codebook.size:
            raise UserError(f"the vocabulary writes {vocabulary.units} units, but the codebook has {codebook.size}")
        if vocoder is not None:
            require_match("the vocoder (its codebook)", vocoder.codebook, codebook.meaning)
        if extractor is not None:
            require_match("the unit extractor (its codebook)", extractor.codebook.fingerprint, codebook.fingerprint)
            self.extractor = extractor
        if detector is not None:
            self.detector = detector
        self.vocabulary, self.codebook, self.vocoder = vocabulary, codebook, vocoder
        self.limits = limits or Limits()
        self.prior_name = prior_name
        self.prior: Prior | None = None
        known = getattr(model.config, RECORD, None) or {}
        for name, given in self._record().items():
            require_match(f"the model (its {name})", known.get(name, given), given)
        self.model = model.eval()

    def _record(self) -> dict[str, str]:
        """Say what gives the model's ids their meaning."""
        return {"vocabulary": self.vocabulary.fingerprint, "codebook": self.codebook.meaning}

    def with_model(self, model: Any, codebook: Codebook | None = None) -> SpeechLM:
        """Put another model in the place of this one's; a codebook, too, whose units mean the same."""
        codebook, name = codebook or self.codebook, self.prior_name
        made = SpeechLM(model, self.vocabulary, codebook, self.vocoder, limits=self.limits, prior_name=name)
        made.prior = self.prior
        return made

    @functools.cached_property
    def extractor(self) -> UnitExtractor:
        """What turns speech into units; its encoder is loaded when it is first needed."""
        return UnitExtractor(load_encoder(self.codebook.encoder_name, self.codebook.layers), self.codebook)

    @functools.cached_property
    def detector(self) -> Detector:
        """What finds speech in recordings; it may be set to another (``sparq.speech.activity``)."""
        return load_detector()

    def save(self, folder: str | Path, *, half: bool = False, complete: bool = True) -> Manifest:
        """Write the folder, whole or not at all.

        Args:
            folder: its name; an older folder of that name is replaced.
            half: write the model's weights in half precision (they are computed with in single precision again).
            complete: write every part; otherwise parts that ship with SpARQ are left out and taken from there.

        Raises:
            UserError: the model carries adapters that are not merged.
        """
        setattr(self.model.config, RECORD, self._record())
        parts = Parts(self.model, self.vocabulary, self.codebook, self.vocoder)
        settings: dict[str, Any] = {"limits": dataclasses.asdict(self.limits)}
        if self.prior_name:
            settings["prior"] = self.prior_name
        return write_folder(Path(folder), parts, settings, half=half, complete=complete)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> SpeechLM:
        """Read a folder that ``save`` wrote, with its attention and simulated quantisation put back.

        Args:
            folder: the folder.
            device: where model and vocoder compute, in single precision.

        Raises:
            UserError: it is not such a folder, or damaged, or a part in it is not the one the model was made with.
        """
        parts, settings = read_folder(Path(folder), device)
        try:
            limits = Limits(**settings["limits"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder}: damaged manifest (limits: {error})") from error
        codebook, name = parts.codebook, settings.get("prior")
        return cls(parts.model, parts.vocabulary, codebook, parts.vocoder, limits=limits, prior_name=name)

    @overload
    def transcribe(self, audio: Audio, options: GenerationOptions | None = None, *, views: int = ...) -> str: ...
    @overload
    def transcribe(
        self, audio: list[Any], options: GenerationOptions | None = None, *, views: int = ...
    ) -> list[str]: ...
    def transcribe(
        self, audio: Audio | list[Any], options: GenerationOptions | None = None, *, views: int = len(VIEWS)
    ) -> str | list[str]:
        """Write down what is said, of any length; a recording in which nobody speaks gives "".

        Args:
            audio: a recording, or several.
            options: how pieces are chosen, see `write_down`.
            views: in how many ways it is heard (:mod:`sparq.speech.views`), 1 to 4: more is slower and surer.

        Raises:
            UserError: a recording cannot be read, the package that finds speech is missing, or there are not so many
                views.
        """
        recordings, single = _several(audio)
        texts: list[list[str]] = [[] for _ in recordings]
        for index, segment in listen(self, map(_waveform, recordings), options, views=views):
            texts[index] += [segment.text] if segment else []
        joined = [" ".join(parts) for parts in texts]
        return joined[0] if single else joined

    def segments(
        self,
        audio: Audio,
        options: GenerationOptions | None = None,
        *,
        views: int = len(VIEWS),
        batch: int = BATCH,
        words: bool = False,
    ) -> Iterator[Segment]:
        """Write down a recording with the times at which things are said, each segment as soon as it is there.

        Args:
            audio: a recording.
            options: how pieces are chosen, see `write_down`.
            views: see `transcribe`.
            batch: segments written down at once.
            words: whether segments tell when each word was said.

        Raises:
            UserError: see `transcribe`; or words are asked of a deployed model.
        """
        heard = listen(self, [_waveform(audio)], options, views=views, batch=batch, words=words)
        return (segment for _, segment in heard if segment)

    def write_down(
        self,
        units: Sequence[Units],
        options: GenerationOptions | None = None,
        rescoring: Rescoring | None = None,
        *,
        views: Sequence[Sequence[Units]] | None = None,
        batch: int = BATCH,
    ) -> list[str]:
        """Write down what is said in raw units, of one utterance each.

        Args:
            units: none of them empty.
            options: how pieces are chosen; a beam of 8 if None; of 4 if there are views, of 24 with a prior.
            rescoring: how the texts that a beam ends with are weighed again; None for its defaults.
            views: units of each utterance heard in other ways (:mod:`sparq.speech.views`), none of them empty: beams
                are scored by all of them (:mod:`sparq.language.joint_search`). None for no other.
            batch: utterances searched at once; what comes out does not depend on it.
        """
        return write_down(self, units, options, rescoring, views=views, batch=batch)

    @overload
    def speak(self, text: str, options: GenerationOptions | None = None, *, voice: Speaker | None = None) -> Spoken: ...
    @overload
    def speak(
        self, text: list[str], options: GenerationOptions | None = None, *, voice: Speaker | None = None
    ) -> list[Spoken]: ...
    def speak(
        self, text: str | list[str], options: GenerationOptions | None = None, *, voice: Speaker | None = None
    ) -> Spoken | list[Spoken]:
        """Read text out; texts longer than ``limits.words`` are cut at the ends of sentences and phrases.

        Args:
            text: a text, or several.
            options: how pieces are chosen; five careful draws if None. Of several draws, or what a beam ends with,
                that is spoken in which the model itself hears the text best (:mod:`sparq.language.rescoring`).
            voice: which of the vocoder's voices, or a recording or an embedding of another; None for its default.

        Returns:
            A waveform and its rate, or several; speech begins and ends as :mod:`sparq.speech.edges` says.

        Raises:
            UserError: the model has no vocoder, there is no such voice, or nothing in a text can be said.
        """
        texts, single = _several(text, str)
        spoken = speak(self, texts, options or SPEAKING, voice)
        return spoken[0] if single else spoken

    def stream(
        self,
        text: str,
        options: GenerationOptions | None = None,
        *,
        voice: Speaker | None = None,
        chunk: int = CHUNK,
    ) -> Iterator[np.ndarray]:
        """Read text out as the model speaks: chunks of the waveform, each as soon as it is known.

        Together they are what ``speak`` gives with the same options.

        Args:
            text: see ``speak``.
            options: see ``speak``, but greedy if None; what is chosen from several is only heard at the end of each
                phrase.
            voice: see ``speak``.
            chunk: units in a chunk, one a frame.

        Returns:
            float32 waveforms [samples] at ``vocoder.rate``.

        Raises:
            UserError: see ``speak``.
        """
        return stream(self, text, options or GenerationOptions(), voice, chunk)

    @overload
    def continue_text(self, beginning: str, options: GenerationOptions | None = None) -> str: ...
    @overload
    def continue_text(self, beginning: list[str], options: GenerationOptions | None = None) -> list[str]: ...
    def continue_text(self, beginning: str | list[str], options: GenerationOptions | None = None) -> str | list[str]:
        """Write on; returns beginning and continuation, in the form that the vocabulary gives to text.

        Args:
            beginning: a text, which may be empty, or several.
            options: how pieces are chosen; sampling if None, because greedy search soon repeats itself.

        Raises:
            UserError: a beginning is too long.
        """
        beginnings, single = _several(beginning, str)
        texts = write_on(self, beginnings, options or CREATIVE)
        return texts[0] if single else texts

    @overload
    def continue_speech(
        self, beginning: Audio, options: GenerationOptions | None = None, *, voice: Speaker | None = None
    ) -> Spoken: ...
    @overload
    def continue_speech(
        self, beginning: list[Any], options: GenerationOptions | None = None, *, voice: Speaker | None = None
    ) -> list[Spoken]: ...
    def continue_speech(
        self, beginning: Audio | list[Any], options: GenerationOptions | None = None, *, voice: Speaker | None = None
    ) -> Spoken | list[Spoken]:
        """Speak on; returns beginning and continuation, both in one voice.

        Args:
            beginning: a recording, or several.
            options: how pieces are chosen; sampling if None, because greedy search soon repeats itself.
            voice: see ``speak``; if None, a vocoder of many voices speaks in that of the recording.

        Raises:
            UserError: the model has no vocoder, there is no such voice, or a recording cannot be read, is too short or
                too long.
        """
        recordings, single = _several(beginning)
        names = [str(a) if isinstance(a, (str, Path)) else f"recording {i}" for i, a in enumerate(recordings)]
        spoken = go_on(self, [_waveform(recording) for recording in recordings], names, options or CREATIVE, voice)
        return spoken[0] if single else spoken


def _several(given: Any, kind: type = object) -> tuple[list[Any], bool]:
    """Make a list of one or several, all of one kind, and say whether it was one."""
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    if wrong := [one for one in several if not isinstance(one, kind)]:
        raise UserError(f"{wrong[0]!r}: {type(wrong[0]).__name__} (expected {kind.__name__})")
    return several, not isinstance(given, (list, tuple))


def _waveform(audio: Audio) -> np.ndarray:
    return check_waveform(audio) if isinstance(audio, np.ndarray) else load_audio(audio)
