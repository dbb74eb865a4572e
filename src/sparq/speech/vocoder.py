"""The vocoder: unit sequences to 16 kHz speech, by a trained generator and a trained duration predictor.

It speaks with one voice, or with many: then a table of named voices goes with it, and the speaker embedding of any
recording is a voice too.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparq.artifacts import new_folder, read_manifest, write_manifest
from sparq.errors import UserError
from sparq.speech.duration import DurationPredictor
from sparq.speech.generator import UnitGenerator, VocoderConfig, fuse_weight_norm
from sparq.speech.speaker_table import Speaker, SpeakerTable
from sparq.speech.streaming import stream_frames, stream_waveform
from sparq.speech.units import Units

__all__ = ["UnitGenerator", "Vocoder", "VocoderConfig"]

CHUNK = 24  # frames of a streamed chunk; 0.58 s at Moonshine's hop
_WEIGHTS = "vocoder.safetensors"
_VOICES = "voices"  # among the weights: the embeddings of the table


class Vocoder:
    """A trained generator with its duration predictor: a folder of kind "vocoder".

    Attributes:
        config: the generator's shape.
        generator: makes waveforms of frames; its weights are plain.
        duration_predictor: says how long merged units last.
        codebook: meaning of the codebook whose units it speaks (``Codebook.meaning``).
        rate: samples per second of what it speaks.
        voices: the named voices of a vocoder of many, else None.

    Raises:
        UserError: a table goes with a vocoder of one voice, or none with one of many.
    """

    def __init__(
        self,
        generator: UnitGenerator,
        durations: DurationPredictor,
        codebook: str,
        voices: SpeakerTable | None = None,
    ) -> None:
        self.config = generator.config
        self.rate = generator.config.rate
        self.codebook = codebook
        self.voices = voices
        size = 0 if voices is None else voices.embeddings.shape[1]
        if size != self.config.speaker_dim:
            raise UserError(f"this vocoder has speaker_dim={self.config.speaker_dim}, but its voices have {size}")
        # The vocoder owns plain copies, so that training can go on beside it.
        self.generator = copy.deepcopy(generator).eval().requires_grad_(requires_grad=False)
        fuse_weight_norm(self.generator)
        self.duration_predictor = copy.deepcopy(durations).eval().requires_grad_(requires_grad=False)

    def save(self, folder: Path) -> None:
        """Write the folder: ``sparq.json``, the weights in half precision, and the voices."""
        state = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        state |= {f"durations.{k}": v for k, v in self.duration_predictor.state_dict().items()}
        tensors = {k: v.half().contiguous() for k, v in state.items()}
        settings: dict[str, Any] = {"config": dataclasses.asdict(self.config)}
        inputs = {"codebook": self.codebook}
        if self.voices is not None:
            tensors[_VOICES] = torch.from_numpy(self.voices.embeddings)
            told = {"names": self.voices.names, "default": self.voices.default, "encoder": self.voices.encoder_name}
            settings["voices"] = told
            inputs["speaker_encoder"] = self.voices.encoder
        with new_folder(Path(folder)) as new:
            save_file(tensors, new / _WEIGHTS)
            write_manifest(new, "vocoder", settings | {"weights": new / _WEIGHTS}, inputs)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Vocoder:
        """Read a folder that ``save`` wrote.

        Raises:
            UserError: it is no vocoder folder, or it is damaged.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, "vocoder")
        try:
            config = VocoderConfig(**manifest.settings["config"])
            state = load_file(folder / _WEIGHTS)
            voices = None
            if config.speaker_dim:
                told = manifest.settings["voices"]
                voices = SpeakerTable(
                    names=tuple(told["names"]),
                    embeddings=state.pop(_VOICES).numpy(),
                    default=told["default"],
                    encoder_name=told["encoder"],
                    encoder=manifest.inputs["speaker_encoder"],
                )
            generator = UnitGenerator(config)
            durations = DurationPredictor(config.units, speaker_dim=config.speaker_dim)
            fuse_weight_norm(generator)
            for name, module in (("generator.", generator), ("durations.", durations)):
                part = {k.removeprefix(name): v.float() for k, v in state.items() if k.startswith(name)}
                module.load_state_dict(part)
            codebook = manifest.inputs["codebook"]
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{folder}: damaged vocoder ({str(error).splitlines()[0]})") from error
        return cls(generator.to(device), durations.to(device), codebook, voices)

    def embedding(self, voice: Speaker | None = None, name: str | None = None) -> np.ndarray | None:
        """Give the speaker embedding, float32 [speaker_dim], of a voice; None for a vocoder of one voice.

        Args:
            voice: the name of one of its voices, a recording (file or samples), or an embedding; None for the default.
            name: what errors call a recording that is given by its samples.

        Raises:
            UserError: there is no such voice, a recording of one is silent or too short, or the vocoder has but one.
        """
        if self.voices is not None:
            return self.voices.find(voice, name)
        if voice is not None:
            raise UserError("voice: this vocoder speaks with one voice alone")
        return None

    def durations(self, merged: Sequence[Units], speaker: np.ndarray | None = None) -> list[np.ndarray]:
        """Predict how many frames (int64, at least 1) each unit of each merged sequence lasts; see ``synthesize``."""
        return self._lengths(merged, self._speaker(speaker, len(merged)))

    @torch.inference_mode()
    def synthesize(
        self, sequences: Sequence[Units], *, merged: bool, speaker: np.ndarray | None = None, batch: int = 8
    ) -> list[np.ndarray]:
        """Speak unit sequences.

        Args:
            sequences: units of each utterance.
            merged: repeats are merged, so durations are predicted; otherwise one unit is one frame.
            speaker: float32 [speaker_dim] or [sequences, speaker_dim], see ``embedding``; None for the default voice.
            batch: utterances at once; what comes out does not depend on it.

        Returns:
            A float32 waveform [frames · hop] per sequence, in −1 … 1.

        Raises:
            UserError: an empty sequence, a unit that the codebook does not have, or ``batch`` below 1.
        """
        if batch < 1:
            raise UserError(f"batch: {batch} (expected at least 1)")
        frames = [self._checked(sequence, index) for index, sequence in enumerate(sequences)]
        speakers = self._speaker(speaker, len(frames))
        if merged:
            frames = [
                np.repeat(units, durations)
                for part in (slice(start, start + batch) for start in range(0, len(frames), batch))
                for units, durations in zip(
                    frames[part], self._lengths(frames[part], None if speakers is None else speakers[part]), strict=True
                )
            ]
        # Utterances of like length share a batch, so that little is computed for padding.
        order = sorted(range(len(frames)), key=lambda index: len(frames[index]))
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(frames)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            units, lengths = self._padded([frames[i] for i in chosen])
            made = self.generator(units, lengths, None if speakers is None else speakers[chosen]).cpu().numpy()
            for row, index in zip(made, chosen, strict=True):
                waves[index] = row[: len(frames[index]) * self.config.hop].copy()
        return waves

    def stream(
        self, units: Iterable[int], *, merged: bool, speaker: np.ndarray | None = None, chunk: int = CHUNK
    ) -> Iterator[np.ndarray]:
        """Speak one unit sequence as its units come; all chunks together are what ``synthesize`` gives.

        A chunk is spoken once the units that it depends on are there: see :mod:`sparq.speech.streaming`.

        Args:
            units: of one utterance; they are asked for one by one, when they are needed.
            merged: as in ``synthesize``.
            speaker: float32 [speaker_dim], or None for the default voice.
            chunk: frames of a chunk; the last may be shorter.

        Returns:
            float32 waveforms [chunk · hop], each made when it is asked for.

        Raises:
            UserError: there are no units, or (as the chunk is asked for) one that the codebook does not have.
        """
        if chunk < 1:
            raise UserError(f"chunk: {chunk} (expected at least 1 frame)")
        voice = self._speaker(speaker, 1)
        checked = (int(self._checked([unit], 0)[0]) for unit in units)
        first = self._checked(list(itertools.islice(checked, 1)), 0).tolist()
        frames: Iterable[int] = itertools.chain(first, checked)
        if merged:
            frames = stream_frames(self.duration_predictor, frames, voice)
        return (part.cpu().numpy() for part in stream_waveform(self.generator, frames, chunk, voice))

    def _lengths(self, merged: Sequence[Units], speakers: Tensor | None) -> list[np.ndarray]:
        units, lengths = self._padded(merged)
        frames = self.duration_predictor.durations(units, lengths, speakers).cpu().numpy()
        return [row[:length] for row, length in zip(frames, lengths.tolist(), strict=True)]

    def _speaker(self, speaker: np.ndarray | None, count: int) -> Tensor | None:
        """Give a row for each sequence."""
        given = self.embedding() if speaker is None else np.asarray(speaker, np.float32)
        if given is None or not count:
            return None
        if self.voices is None or given.shape not in ((self.config.speaker_dim,), (count, self.config.speaker_dim)):
            raise UserError(
                f"speaker: shape {list(given.shape)} (this vocoder has speaker_dim={self.config.speaker_dim})"
            )
        rows = np.broadcast_to(given, (count, self.config.speaker_dim)).copy()
        return torch.from_numpy(rows).to(self.generator.embedding.weight)

    def _checked(self, sequence: Units, index: int) -> np.ndarray:
        units = np.asarray(sequence, dtype=np.int64)
        if units.ndim != 1 or not units.size:
            raise UserError(f"vocoder: sequence {index} has no units to speak")
        wrong = units[(units < 0) | (units >= self.config.units)]
        if wrong.size:
            raise UserError(f"vocoder: sequence {index} holds unit {wrong[0]}, expected 0 … {self.config.units - 1}")
        return units

    def _padded(self, sequences: Sequence[Units]) -> tuple[Tensor, Tensor]:
        device = self.generator.embedding.weight.device
        lengths = torch.tensor([len(s) for s in sequences], device=device)
        units = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long, device=device)
        for row, sequence in zip(units, sequences, strict=True):
            row[: len(sequence)] = torch.as_tensor(np.asarray(sequence), dtype=torch.long)
        return units, lengths
