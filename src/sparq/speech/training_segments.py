"""What a vocoder is trained on: segments of recordings, of one speaker or of many.

A vocoder of many voices hears each segment together with the speaker embedding of its recording. Who has little audio
may be drawn more often than its share: speakers by a power of how long they speak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from sparq.errors import UserError
from sparq.speech.generator import VocoderConfig
from sparq.speech.speaker import SpeakerEncoder
from sparq.speech.speaker_table import SpeakerTable

_EMBEDDINGS = "speakers.npy"


@dataclasses.dataclass(frozen=True)
class Recording:
    """Speech and its units.

    Attributes:
        waveform: float32 [samples] at the vocoder's rate; may be memory-mapped.
        units: int [frames], one per hop, repeats not merged.
        speaker: who speaks; the name of a voice, in a vocoder of many.
        text: what is said, where that is known.
    """

    waveform: np.ndarray
    units: np.ndarray
    speaker: str = "speaker"
    text: str | None = None


class Segments:
    """Recordings that are long enough, and the segments drawn from them.

    Attributes:
        recordings: those with at least a segment.
        embeddings: who speaks in each, float32 [recordings, dimension]; None for a vocoder of one voice.

    Raises:
        UserError: no recording is as long as a segment, or a unit is out of range.
    """

    def __init__(
        self, recordings: Sequence[Recording], config: VocoderConfig, frames: int, seed: int, balance: float = 0.5
    ) -> None:
        """Take recordings.

        Args:
            recordings: of any length.
            config: of the vocoder: its units, hop and rate.
            frames: of a segment.
            seed: of what is drawn.
            balance: power of a speaker's length that is the share; 1 draws all segments alike, 0 all speakers.
        """
        self._config, self._length, self._seed = config, frames, seed
        self.recordings = [recording for recording in recordings if self._frames(recording) >= frames]
        if not self.recordings:
            raise UserError(f"vocoder training: no recording has the {frames} frames of a segment")
        highest = max(int(recording.units.max()) for recording in self.recordings)
        if highest >= config.units:
            raise UserError(f"vocoder training: unit {highest} is out of range for a codebook of {config.units}")
        self.embeddings: np.ndarray | None = None
        self.chances = self._chances(balance)

    def embed(self, encoder: SpeakerEncoder, folder: Path, others: SpeakerTable | None = None) -> SpeakerTable:
        """Tell who speaks in every recording, or read what an earlier start left in the folder.

        Returns:
            The speakers by name, and beside them ``others`` who are known already.

        Raises:
            UserError: what it left is of other recordings.
            ArtifactMismatchError: another speaker encoder heard the others.
        """
        path = folder / f"{encoder.fingerprint}-{_EMBEDDINGS}"
        if not path.is_file():
            waves = [recording.waveform for recording in self.recordings]
            shown = track(waves, "speakers", console=Console(stderr=True), transient=True)
            found = np.concatenate([encoder.embed([wave]) for wave in shown])
            temporary = path.with_name(f".{path.name}")
            np.save(temporary, found)
            temporary.replace(path)
        embeddings: np.ndarray = np.load(path)
        if len(embeddings) != len(self.recordings):
            raise UserError(f"{path}: is of {len(embeddings)} recordings, not {len(self.recordings)}; remove it")
        seconds = [len(recording.waveform) / self._config.rate for recording in self.recordings]
        speakers = [recording.speaker for recording in self.recordings]
        self.embeddings = embeddings
        voices = SpeakerTable.of_recordings(speakers, embeddings, seconds, encoder)
        return voices if others is None else voices.beside(others)

    def draw(self, step: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Draw the segments of a step, always the same ones.

        Returns:
            Units int64 [count, frames], waveforms float32 [count, frames · hop], and speaker embeddings float32
            [count, dimension] or None.
        """
        random = np.random.default_rng([self._seed, step])
        frames, hop = self._length, self._config.hop
        units, waves = [], []
        chosen = random.choice(len(self.recordings), count, p=self.chances)
        for index in chosen:
            recording = self.recordings[index]
            start = int(random.integers(self._frames(recording) - frames + 1))
            units.append(np.asarray(recording.units[start : start + frames], np.int64))
            waves.append(np.asarray(recording.waveform[start * hop : (start + frames) * hop], np.float32))
        speakers = None if self.embeddings is None else self.embeddings[chosen]
        return np.stack(units), np.stack(waves), speakers

    def _frames(self, recording: Recording) -> int:
        return min(len(recording.units), len(recording.waveform) // self._config.hop)

    def _chances(self, balance: float) -> np.ndarray:
        """Say how likely each recording is drawn: every segment of a speaker alike."""
        starts = np.array([self._frames(r) - self._length + 1 for r in self.recordings], dtype=np.float64)
        spoken: dict[str, float] = {}
        for recording, count in zip(self.recordings, starts, strict=True):
            spoken[recording.speaker] = spoken.get(recording.speaker, 0.0) + count
        chance = starts * np.array([spoken[recording.speaker] for recording in self.recordings]) ** (balance - 1)
        return chance / chance.sum()
