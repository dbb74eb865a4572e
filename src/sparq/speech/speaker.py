"""Speaker embeddings: one vector that tells who speaks, whatever is said.

``resemblyzer`` is the GE2E encoder of the package of that name (Wan et al. 2018, "Generalized end-to-end loss for
speaker verification"): its weights alone are read, its code is not imported. Others are x-vectors of a WavLM (Chen et
al. 2022; ``microsoft/wavlm-base-plus-sv``), by hub name or local folder. Long recordings are read in windows, whose
embeddings are averaged; windows that are silent beside the loudest one say nothing about the speaker and are left out.
"""

from __future__ import annotations

import abc
import functools
import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from sparq.artifacts import fingerprint
from sparq.assets import embedded
from sparq.device import usual_device
from sparq.errors import UserError
from sparq.speech.audio import RATE, check_waveform
from sparq.speech.encoder import hash_parameters, normalises_input

SHORTEST_SECONDS = 0.1
_SILENT = 1e-3  # of the loudest window's power
_TOGETHER = 32  # windows in one forward pass


class SpeakerEncoder(abc.ABC):
    """A frozen model from 16 kHz waveforms to vectors of length 1.

    Attributes:
        name: what ``load_speaker_encoder`` was given.
        dimension: of an embedding.
        fingerprint: hash of the weights and of how they are used; embeddings are only comparable where it is the same.
    """

    name: str
    dimension: int
    fingerprint: str
    rate = RATE

    @abc.abstractmethod
    def _windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        """Cut a waveform, float32 ``[samples]``, into windows of one length (the last may be another's)."""

    @abc.abstractmethod
    def _forward(self, windows: np.ndarray) -> np.ndarray:
        """Embed windows, float32 ``[windows, samples]``, as ``[windows, dimension]``."""

    def embed(self, waveforms: Sequence[np.ndarray], names: Sequence[str] | None = None) -> np.ndarray:
        """Embed recordings of any length, float32 ``[samples]`` each: float32 ``[recordings, dimension]``, of length 1.

        Args:
            waveforms: the recordings.
            names: what errors call them, such as their files; None for their numbers.

        Raises:
            UserError: a recording is silent, shorter than 0.1 s, or not finite.
        """
        names = names or [f"waveform {index}" for index in range(len(waveforms))]
        found = [self._embed(check_waveform(wave, name), name) for wave, name in zip(waveforms, names, strict=True)]
        return np.stack(found) if found else np.zeros((0, self.dimension), np.float32)

    def _embed(self, waveform: np.ndarray, name: str) -> np.ndarray:
        if len(waveform) < SHORTEST_SECONDS * self.rate:
            seconds = len(waveform) / self.rate
            raise UserError(f"{name}: {seconds:.3f} s are too short to tell who speaks (expected 0.1 s)")
        if not waveform.any():
            raise UserError(f"{name}: is silent, so that nobody speaks in it")
        windows = self._windows(waveform)
        power = np.array([np.square(window, dtype=np.float64).mean() for window in windows])
        heard = [window for window, loud in zip(windows, power >= _SILENT * power.max(), strict=True) if loud]
        total = np.zeros(self.dimension)
        for start in range(0, len(heard), _TOGETHER):
            part = heard[start : start + _TOGETHER]
            # The last window of a recording may be longer or shorter than those before it.
            for size in sorted({len(window) for window in part}):
                total += self._forward(np.stack([window for window in part if len(window) == size])).sum(axis=0)
        return unit_length(total)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Divide vectors ``[..., dimension]`` by their length, as float32."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    divided: np.ndarray = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return divided


class GE2E(nn.Module):
    """The network of Resemblyzer: three LSTM layers, whose last state becomes the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mel: Tensor) -> Tensor:
        """Map mel spectrograms [windows, frames, 40] to embeddings [windows, 256], none negative, of length 1."""
        _, (state, _) = self.lstm(mel)
        return nn.functional.normalize(self.linear(state[-1]).relu(), dim=1)


class ResemblyzerEncoder(SpeakerEncoder):
    """The weights of the Resemblyzer package on mel spectrograms of 1.6 s (256 dimensions).

    A spectrogram has 40 bands of power (Slaney's mel scale and norm), 25 ms windows and a hop of 10 ms; there are 1.3
    windows of 160 frames a second, of which the last counts if three quarters of it are recorded. Quiet recordings are
    raised to -30 dB.
    """

    name = "resemblyzer"
    dimension = 256
    _SIZE, _HOP, _FRAMES, _STEP = 400, 160, 160, 77  # samples, samples, frames, frames
    _QUIET = 10 ** (-30 / 20)  # root mean square

    def __init__(self) -> None:
        path = embedded("resemblyzer")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
            model = GE2E()
            model.load_state_dict({k: v for k, v in state.items() if not k.startswith("similarity_")})
        except (OSError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(f"{path}: damaged weights ({str(error).splitlines()[0]})") from error
        self._model = model.eval()
        filters = mel_filter_bank(
            self._SIZE // 2 + 1, 40, 0.0, self.rate / 2, self.rate, norm="slaney", mel_scale="slaney"
        )
        self._filters = torch.from_numpy(filters).float()
        self._hann = torch.hann_window(self._SIZE)
        self.fingerprint = fingerprint({"weights": path, "step": self._STEP, "silent": _SILENT})

    def _windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        loudness = math.sqrt(np.square(waveform, dtype=np.float64).mean())
        if loudness < self._QUIET:
            waveform = waveform * np.float32(self._QUIET / loudness)
        frames = len(waveform) // self._HOP + 1
        starts = list(range(0, max(1, frames - self._FRAMES + self._STEP + 1), self._STEP))
        if len(starts) > 1 and len(waveform) - starts[-1] * self._HOP < 0.75 * self._FRAMES * self._HOP:
            starts.pop()
        # Frame t is centred on sample t · hop; outside there is silence.
        span = (self._FRAMES - 1) * self._HOP + self._SIZE
        padded = np.pad(waveform, (self._SIZE // 2, span))
        return [padded[start * self._HOP :][:span] for start in starts]

    def mel(self, windows: Tensor) -> Tensor:
        """Map windows [windows, samples] to mel spectrograms of power [windows, frames, 40]."""
        spectrum = torch.stft(windows, self._SIZE, self._HOP, window=self._hann, center=False, return_complex=True)
        return spectrum.abs().square().transpose(1, 2) @ self._filters

    @torch.inference_mode()
    def _forward(self, windows: np.ndarray) -> np.ndarray:
        embeddings: np.ndarray = self._model(self.mel(torch.from_numpy(windows))).numpy()
        return embeddings


class XVectorEncoder(SpeakerEncoder):
    """The x-vectors of a WavLM of transformers, by hub name or local folder; on the GPU if there is one."""

    _WINDOW_SECONDS = 10.0
    _LEAST_SECONDS = 1.0  # what is shorter is said again until it is as long

    def __init__(self, name: str) -> None:
        from transformers import AutoConfig, WavLMForXVector

        try:
            config = AutoConfig.from_pretrained(name)
            if config.model_type != "wavlm":
                raise UserError(
                    f"{name}: is a {config.model_type} model; speaker encoders are resemblyzer and WavLM models"
                )
            loaded: Any = WavLMForXVector.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name}: cannot be loaded as a WavLM model ({str(error).splitlines()[0]})") from error
        model, told = loaded
        if any(key.startswith(("tdnn", "projector", "feature_extractor")) for key in told["missing_keys"]):
            raise UserError(
                f"{name}: is a WavLM without the layers of x-vectors (such as microsoft/wavlm-base-plus-sv)"
            )
        self.name = name
        self.dimension = int(config.xvector_output_dim)
        self._device = usual_device()
        self._normalise = normalises_input(name, config.feat_extract_norm == "layer")
        model.eval()
        self._model: Any = nn.Module.to(model, self._device)
        self.fingerprint = fingerprint({"weights": hash_parameters(model), "normalised": self._normalise})

    def _windows(self, waveform: np.ndarray) -> list[np.ndarray]:
        least, size = round(self._LEAST_SECONDS * self.rate), round(self._WINDOW_SECONDS * self.rate)
        if len(waveform) < least:
            waveform = np.resize(waveform, least)  # which repeats it
        count = max(1, round(len(waveform) / size))
        return [waveform[i * size : None if i == count - 1 else (i + 1) * size] for i in range(count)]

    @torch.inference_mode()
    def _forward(self, windows: np.ndarray) -> np.ndarray:
        if self._normalise:
            windows = (windows - windows.mean(1, keepdims=True)) / np.sqrt(windows.var(1, keepdims=True) + 1e-7)
        embeddings = self._model(torch.from_numpy(windows).to(self._device)).embeddings
        return nn.functional.normalize(embeddings, dim=1).cpu().numpy()


@functools.cache
def load_speaker_encoder(name: str = "resemblyzer") -> SpeakerEncoder:
    """Load a speaker encoder, once: ``resemblyzer``, or a WavLM for x-vectors as a hub name or local folder.

    Raises:
        UserError: no such model, or the package is missing (the line says which command installs it).
    """
    return ResemblyzerEncoder() if name == "resemblyzer" else XVectorEncoder(name)
