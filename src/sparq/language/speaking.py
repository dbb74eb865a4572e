"""Text read out, whole or while the model still speaks, and speech that goes on; in one of the vocoder's voices.

What is read out begins with a pause, where units tell pauses: a model that has learnt from phrases cut out of sentences
would else begin some as if it were in the middle of one, with the end of a word that was before.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparq.errors import UserError
from sparq.language.alphabet import in_letters_of
from sparq.language.generation import GenerationOptions, candidates, generate
from sparq.language.phrases import split_text
from sparq.language.rescoring import best_units
from sparq.language.spoken_form import spoken_form
from sparq.language.streaming import stream_pieces, stream_units
from sparq.language.tasks import TASKS, continuation_prompt, prompt
from sparq.language.vocabulary import Vocabulary
from sparq.speech.audio import RATE
from sparq.speech.edges import from_onset, to_silence
from sparq.speech.level import levelled
from sparq.speech.speaker_table import Speaker
from sparq.speech.units import Units, merge_repeats
from sparq.speech.vocoder import Vocoder

if TYPE_CHECKING:
    from sparq.language.speech_lm import SpeechLM

Spoken = tuple[np.ndarray, int]
"""A waveform, float32 [samples], and its samples per second."""

_PAUSE = RATE // 5  # samples between the parts of a long text


def speak(lm: SpeechLM, texts: Sequence[str], options: GenerationOptions, voice: Speaker | None) -> list[Spoken]:
    """Read texts out, all phrases of all of them together; see ``SpeechLM.speak``."""
    vocoder = _vocoder(lm)
    speaker = vocoder.embedding(voice)
    parts = [(owner, part) for owner, whole in enumerate(texts) for part in _phrases(lm, whole)]
    units = _best_heard(lm, [part for _, part in parts], options)
    waves: list[list[np.ndarray]] = [[] for _ in texts]
    said = vocoder.synthesize(units, merged=lm.vocabulary.deduplicate, speaker=speaker)
    for (owner, _), wave in zip(parts, said, strict=True):
        waves[owner] += [np.zeros(_PAUSE if waves[owner] else 0, np.float32), *from_onset([wave])]
    return [(np.concatenate(list(to_silence(of_one))), vocoder.rate) for of_one in waves]


def stream(
    lm: SpeechLM, text: str, options: GenerationOptions, voice: Speaker | None, chunk: int
) -> Iterator[np.ndarray]:
    """Read a text out phrase by phrase and chunk by chunk; see ``SpeechLM.stream``."""
    vocoder, vocabulary, task = _vocoder(lm), lm.vocabulary, TASKS["tts"]
    speaker, phrases = vocoder.embedding(voice), _phrases(lm, text)

    def said(index: int, phrase: str) -> Generator[int, None, None]:
        if options.answers > 1:
            yield from _best_heard(lm, [phrase], options, index)[0]
            return
        ids = prompt(task, vocabulary, phrase)
        beginnings, fuller = _beginning(lm, options)
        pieces = stream_pieces(lm.model, vocabulary, ids, task.target, fuller, index, beginnings)
        with contextlib.closing(pieces):
            yield from stream_units(vocabulary, pieces)

    def spoken() -> Iterator[np.ndarray]:
        for index, phrase in enumerate(phrases):
            if index:
                yield np.zeros(_PAUSE, np.float32)
            with contextlib.closing(said(index, phrase)) as units:
                parts = vocoder.stream(units, merged=vocabulary.deduplicate, speaker=speaker, chunk=chunk)
                yield from from_onset(parts)

    return to_silence(spoken())


def go_on(
    lm: SpeechLM,
    recordings: Sequence[np.ndarray],
    names: Sequence[str],
    options: GenerationOptions,
    voice: Speaker | None,
) -> list[Spoken]:
    """Speak on, from recordings float32 [samples] that errors call by their names; see ``continue_speech``."""
    vocoder, vocabulary, task = _vocoder(lm), lm.vocabulary, TASKS["speechlm"]
    heard = lm.extractor.extract([levelled(one) for one in recordings])
    for name, units in zip(names, heard, strict=True):
        if not len(units):
            raise UserError(f"{name}: too short to be continued")
    own = voice is None and vocoder.voices is not None
    speakers = [
        vocoder.embedding(recording, name) if own else vocoder.embedding(voice)
        for recording, name in zip(recordings, names, strict=True)
    ]
    prompts = [continuation_prompt(task, vocabulary, units) for units in heard]
    made = generate(lm.model, vocabulary, prompts, task.target, options)
    frames = [
        _timed(vocoder, units, _units(vocabulary, ids), speaker) if vocabulary.deduplicate
        else [*units.tolist(), *_units(vocabulary, ids)]
        for units, ids, speaker in zip(heard, made, speakers, strict=True)
    ]  # fmt: skip
    rows = None if vocoder.voices is None else np.array(speakers)
    return [(wave, vocoder.rate) for wave in vocoder.synthesize(frames, merged=False, speaker=rows)]


def _best_heard(lm: SpeechLM, phrases: Sequence[str], options: GenerationOptions, first: int = 0) -> list[Units]:
    """Units of each phrase: of what the search ends with, those in which the model hears it best."""
    task, vocabulary = TASKS["tts"], lm.vocabulary
    prompts = [prompt(task, vocabulary, phrase) for phrase in phrases]
    beginnings, options = _beginning(lm, options)
    found = candidates(lm.model, vocabulary, prompts, task.target, options, first=first, beginnings=beginnings)
    several = [[_units(vocabulary, ids) for ids in answers] for answers in found]
    return best_units(lm.model, vocabulary, phrases, several)


def _beginning(lm: SpeechLM, options: GenerationOptions) -> tuple[np.ndarray | None, GenerationOptions]:
    """Tell which pieces begin with a pause, bool [size of the vocabulary], and have another piece follow the first.

    A short word such as "a" might be over with the pause. Where no piece is known to begin with one, nothing is asked.
    """
    pauses = set(lm.codebook.pauses.tolist())
    begins = [lm.vocabulary.decode_units([piece])[:1] for piece in range(lm.vocabulary.size)]
    mask = np.array([bool(pauses.intersection(units)) for units in begins])
    if not mask.any():
        return None, options
    return mask, dataclasses.replace(options, min_pieces=min(max(2, options.min_pieces), options.max_pieces))


def _vocoder(lm: SpeechLM) -> Vocoder:
    if lm.vocoder is None:
        raise UserError("this SpeechLM has no vocoder: it cannot speak")
    return lm.vocoder


def _units(vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    """Units of generated ids; where two pieces meet, a repeat may still have to be merged."""
    units = vocabulary.decode_units(ids)
    return merge_repeats(units)[0].tolist() if vocabulary.deduplicate else units


def _timed(vocoder: Vocoder, heard: np.ndarray, more: list[int], speaker: np.ndarray | None) -> list[int]:
    """One unit per frame: what was heard as it was, then what was made, its durations predicted."""
    known = merge_repeats(heard)[1]
    whole = merge_repeats([*heard.tolist(), *more])[0]
    durations = vocoder.durations([whole.tolist()], speaker)[0]
    durations[: len(known)] = known
    return np.repeat(whole, durations).tolist()


def _phrases(lm: SpeechLM, text: str) -> list[str]:
    """Cut a text into what the model can say at once; half of the positions are left for the units."""
    room, vocabulary = lm.model.config.max_position_embeddings // 2, lm.vocabulary
    if vocabulary.normalisation == "letters":
        text = spoken_form(in_letters_of(vocabulary, text))  # of which there are more words

    def pieces(phrase: str) -> int:
        return len(prompt(TASKS["tts"], vocabulary, phrase))

    phrases = split_text(text, lm.limits.words, lambda phrase: pieces(phrase) <= room)
    for phrase in phrases:
        if (count := pieces(phrase)) > room:  # a single word
            raise UserError(f"text {phrase[:40]!r}: too long a word ({count} pieces of at most {room})")
    said = [phrase for phrase in phrases if vocabulary.write_text(phrase)]
    if not said:
        raise UserError(f"text {text[:40]!r}: there is nothing in it that can be said")
    return said
