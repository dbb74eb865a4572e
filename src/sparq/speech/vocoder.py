"""The vocoder: unit sequences to 16 kHz speech, by a trained generator and a trained duration predictor."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparq.artifacts import new_folder, read_manifest, write_manifest
from sparq.errors import UserError
from sparq.speech.duration import DurationPredictor
from sparq.speech.generator import UnitGenerator, VocoderConfig, fuse_weight_norm
from sparq.speech.units import Units

__all__ = ["UnitGenerator", "Vocoder", "VocoderConfig"]

_WEIGHTS = "vocoder.safetensors"


class Vocoder:
    """A trained generator with its duration predictor: a folder of kind "vocoder".

    Attributes:
        config: the generator's shape.
        codebook: fingerprint of the codebook whose units it speaks.
        rate: samples per second of what it speaks.
    """

    def __init__(self, generator: UnitGenerator, durations: DurationPredictor, codebook: str) -> None:
        self.config = generator.config
        self.rate = generator.config.rate
        self.codebook = codebook
        # The vocoder owns plain copies, so that training can go on beside it.
        self._generator = copy.deepcopy(generator).eval().requires_grad_(requires_grad=False)
        fuse_weight_norm(self._generator)
        self._durations = copy.deepcopy(durations).eval().requires_grad_(requires_grad=False)

    def save(self, folder: Path) -> None:
        """Write the folder: ``sparq.json`` and the weights in half precision."""
        state = {f"generator.{k}": v for k, v in self._generator.state_dict().items()}
        state |= {f"durations.{k}": v for k, v in self._durations.state_dict().items()}
        with new_folder(Path(folder)) as new:
            save_file({k: v.half().contiguous() for k, v in state.items()}, new / _WEIGHTS)
            settings = {"config": dataclasses.asdict(self.config), "weights": new / _WEIGHTS}
            write_manifest(new, "vocoder", settings, {"codebook": self.codebook})

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
            generator, durations = UnitGenerator(config), DurationPredictor(config.units)
            fuse_weight_norm(generator)
            for name, module in (("generator.", generator), ("durations.", durations)):
                part = {k.removeprefix(name): v.float() for k, v in state.items() if k.startswith(name)}
                module.load_state_dict(part)
            codebook = manifest.inputs["codebook"]
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{folder}: damaged vocoder ({str(error).splitlines()[0]})") from error
        return cls(generator.to(device), durations.to(device), codebook)

    def durations(self, merged: Sequence[Units]) -> list[np.ndarray]:
        """Predict how many frames (int64, at least 1) each unit of each merged sequence lasts."""
        units, lengths = self._padded(merged)
        frames = self._durations.durations(units, lengths).cpu().numpy()
        return [row[:length] for row, length in zip(frames, lengths.tolist(), strict=True)]

    @torch.inference_mode()
    def synthesize(
        self, sequences: Sequence[Units], *, merged: bool, speaker: np.ndarray | None = None, batch: int = 8
    ) -> list[np.ndarray]:
        """Speak unit sequences.

        Args:
            sequences: units of each utterance.
            merged: repeats are merged, so durations are predicted; otherwise one unit is one frame.
            speaker: float [sequences, speaker_dim] for a vocoder of many voices.
            batch: utterances at once; what comes out does not depend on it.

        Returns:
            A float32 waveform [frames · hop] per sequence, in −1 … 1.

        Raises:
            UserError: an empty sequence, or a unit that the codebook does not have.
        """
        frames = [self._checked(sequence, index) for index, sequence in enumerate(sequences)]
        if merged:
            frames = [
                np.repeat(units, durations)
                for start in range(0, len(frames), batch)
                for units, durations in zip(
                    frames[start : start + batch], self.durations(frames[start : start + batch]), strict=True
                )
            ]
        # Utterances of like length share a batch, so that little is computed for padding.
        order = sorted(range(len(frames)), key=lambda index: len(frames[index]))
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(frames)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            units, lengths = self._padded([frames[i] for i in chosen])
            voice = None if speaker is None else torch.as_tensor(speaker[chosen], dtype=torch.float32).to(units.device)
            made = self._generator(units, lengths, voice).cpu().numpy()
            for row, index in zip(made, chosen, strict=True):
                waves[index] = row[: len(frames[index]) * self.config.hop].copy()
        return waves

    def _checked(self, sequence: Units, index: int) -> np.ndarray:
        units = np.asarray(sequence, dtype=np.int64)
        if units.ndim != 1 or not units.size:
            raise UserError(f"vocoder: sequence {index} has no units to speak")
        wrong = units[(units < 0) | (units >= self.config.units)]
        if wrong.size:
            raise UserError(f"vocoder: sequence {index} holds unit {wrong[0]}, expected 0 … {self.config.units - 1}")
        return units

    def _padded(self, sequences: Sequence[Units]) -> tuple[Tensor, Tensor]:
        device = self._generator.embedding.weight.device
        lengths = torch.tensor([len(s) for s in sequences], device=device)
        units = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long, device=device)
        for row, sequence in zip(units, sequences, strict=True):
            row[: len(sequence)] = torch.as_tensor(np.asarray(sequence), dtype=torch.long)
        return units, lengths
