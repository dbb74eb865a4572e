"""The voices of a vocoder by name, each a speaker embedding, and what embeds further ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparq.artifacts import require_match
from sparq.errors import UserError
from sparq.schema import did_you_mean
from sparq.speech.audio import load_audio
from sparq.speech.speaker import SpeakerEncoder, load_speaker_encoder, unit_length

Speaker = str | Path | np.ndarray
"""The name of a voice, a recording of one (a file, or float32 [samples] at 16 kHz), or a speaker embedding."""


@dataclasses.dataclass(frozen=True, eq=False)
class SpeakerTable:
    """Named voices.

    Attributes:
        names: of the voices.
        embeddings: float32 [voices, dimension], each of length 1.
        default: the name of the voice that speaks when none is asked for.
        encoder_name: what to give ``load_speaker_encoder``.
        encoder: fingerprint of the speaker encoder that made the embeddings.
    """

    names: tuple[str, ...]
    embeddings: np.ndarray
    default: str
    encoder_name: str
    encoder: str

    @classmethod
    def of_recordings(
        cls, speakers: Sequence[str], embeddings: np.ndarray, seconds: Sequence[float], encoder: SpeakerEncoder
    ) -> SpeakerTable:
        """Take the mean embedding of every speaker; who speaks longest is the default.

        Args:
            speakers: who speaks in each recording.
            embeddings: float32 [recordings, dimension].
            seconds: how long each recording is.
            encoder: what made the embeddings.
        """
        names = tuple(sorted(set(speakers)))
        which = np.array([names.index(speaker) for speaker in speakers])
        means = np.stack([embeddings[which == index].mean(axis=0) for index in range(len(names))])
        spoken = np.bincount(which, weights=seconds)
        return cls(names, unit_length(means), names[int(spoken.argmax())], encoder.name, encoder.fingerprint)

    def beside(self, others: SpeakerTable) -> SpeakerTable:
        """Give these voices and, of others, those that have another name.

        Raises:
            ArtifactMismatchError: another speaker encoder made their embeddings.
        """
        require_match("the vocoder to start from (its speaker encoder)", others.encoder, self.encoder)
        more = [i for i, name in enumerate(others.names) if name not in self.names]
        names = self.names + tuple(others.names[i] for i in more)
        return dataclasses.replace(
            self, names=names, embeddings=np.concatenate([self.embeddings, others.embeddings[more]])
        )

    def find(self, voice: Speaker | None, name: str | None = None) -> np.ndarray:
        """Give the embedding, float32 [dimension], of a voice; None is the default one.

        Args:
            voice: which one.
            name: what errors call a recording that is given by its samples; None for "waveform 0".

        Raises:
            UserError: no such voice or file, a recording that is silent or cannot be read, an embedding of another
                size, or no speaker encoder to embed a recording with.
        """
        dimension = self.embeddings.shape[1]
        if isinstance(voice, np.ndarray):
            if voice.shape == (dimension,):
                if not np.isfinite(voice).all() or not voice.any():
                    raise UserError("voice: the embedding is zero or not finite")
                return unit_length(voice)
            return self._embed(voice, name)
        asked = self.default if voice is None else str(voice)
        if asked in self.names:
            return self.embeddings[self.names.index(asked)]
        if not Path(asked).exists():
            raise UserError(f"voice {asked!r}: no such voice and no such file ({did_you_mean(asked, self.names)})")
        return self._embed(load_audio(asked), asked)

    def _embed(self, recording: np.ndarray, name: str | None) -> np.ndarray:
        try:
            encoder = load_speaker_encoder(self.encoder_name)
        except UserError as error:
            names = ", ".join(self.names)
            raise UserError(f"{error}; without it there are the voices {names}") from error
        require_match("the vocoder (its speaker encoder)", self.encoder, encoder.fingerprint)
        return encoder.embed([recording], None if name is None else [name])[0]
