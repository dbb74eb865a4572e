"""Speech encoders: 16 kHz waveforms to features ``[frames, dimension]``, from any hidden layer.

**Which layers.** Layer l is transformers' ``hidden_states[l]``: 0 is what enters the first block, l is what leaves
block l *with* the residual added. Only the last layer of a pre-norm encoder (HuBERT large, Moonshine) has passed the
final layer norm. Toolkits differ in both counts, so a codebook belongs to the encoder whose fingerprint it carries.
Several layers give features side by side.

**Batches are exact.** Both encoders normalise over the whole clip (group norm after the first convolution) and attend
to all of it, so padding changes every frame, mask or no mask: with a mask, 3 % of Moonshine's units move. Nothing is
padded, then: waveforms are cut to whole frames, and those of equal length share a batch.

**Long audio** is encoded in blocks of 28.8 s, each seen with 2 s of context on either side, on a grid that starts with
the audio; up to 30.8 s it is one clip. Features of a block depend on that window alone, so an hour-long file gives the
same units as any part of it cut on the grid, in bounded memory. One pass over the whole file is another thing: these
encoders attend globally and were not trained beyond 30 s. It gave 96 % of the same units on 44 s, 74 % on 90 s.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sparq.artifacts import fingerprint
from sparq.assets import embedded
from sparq.device import usual_device
from sparq.errors import UserError
from sparq.speech import moonshine
from sparq.speech.audio import RATE, check_waveform

BLOCK_SECONDS = 28.8
CONTEXT_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class _Window:
    """Frames ``start:stop`` of an utterance, computed from frames ``left:right``."""

    utterance: int
    left: int
    start: int
    stop: int
    right: int


class Encoder(abc.ABC):
    """A frozen model from 16 kHz waveforms to features of one layer or several.

    Attributes:
        name: what ``load_encoder`` was given.
        layers: indices into ``hidden_states``; features of several stand side by side, in this order.
        rate: samples per second, 16000.
        hop: samples from one frame to the next.
        first_frame: samples that one frame takes; n frames take ``first_frame + (n - 1) * hop``.
        dimension: of a feature.
        fingerprint: hash of name, layers, weights and windows; units are only comparable where it is the same.
        batch_seconds: of audio in one forward pass.
    """

    rate = RATE
    batch_seconds = 120.0

    def __init__(
        self,
        name: str,
        layers: tuple[int, ...],
        hop: int,
        first_frame: int,
        dimension: int,
        weights: str,
        block_seconds: float,
    ) -> None:
        self.name = name
        self.layers = layers
        self.hop = hop
        self.first_frame = first_frame
        self.dimension = dimension * len(layers)
        self.block = round(block_seconds * RATE / hop)
        self.context = round(CONTEXT_SECONDS * RATE / hop)
        self.fingerprint = fingerprint(
            {
                "layer": layers[0] if len(layers) == 1 else layers,
                "weights": weights,
                "block": self.block,
                "context": self.context,
                "hop": hop,
            }
        )

    @abc.abstractmethod
    def _forward(self, batch: np.ndarray) -> np.ndarray:
        """Encode float32 ``[batch, samples]``, all of one length, to ``[batch, frames, dimension]``."""

    def frames(self, samples: int) -> int:
        """Return how many frames that many samples give; fewer than ``first_frame`` samples give none."""
        return max(0, (samples - self.first_frame) // self.hop + 1)

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encode waveforms, float32 ``[samples]`` at 16 kHz, to float32 ``[frames, dimension]`` each.

        The same as encoding them one by one. A waveform too short for a frame gives ``[0, dimension]``.

        Raises:
            UserError: a waveform is empty or not finite.
        """
        waves = [check_waveform(wave, f"waveform {i}") for i, wave in enumerate(waveforms)]
        features = [np.zeros((self.frames(len(wave)), self.dimension), np.float32) for wave in waves]
        alike: dict[int, list[_Window]] = defaultdict(list)
        for i, found in enumerate(features):
            for window in self._windows(i, len(found)):
                alike[window.right - window.left].append(window)
        for frames, windows in alike.items():
            samples = self.first_frame + (frames - 1) * self.hop
            together = max(1, int(self.batch_seconds * RATE / samples))
            for i in range(0, len(windows), together):
                part = windows[i : i + together]
                batch = np.stack([waves[w.utterance][w.left * self.hop :][:samples] for w in part])
                for w, output in zip(part, self._forward(batch), strict=True):
                    features[w.utterance][w.start : w.stop] = output[w.start - w.left : w.stop - w.left]
        return features

    def _windows(self, utterance: int, frames: int) -> list[_Window]:
        """Cut an utterance into blocks; a remainder no longer than the context joins the last of them."""
        starts = list(range(0, max(1, frames - self.context), self.block)) if frames else []
        stops = [*starts[1:], frames]
        return [
            _Window(utterance, max(0, start - self.context), start, stop, min(frames, stop + self.context))
            for start, stop in zip(starts, stops, strict=False)
        ]


class MoonshineEncoder(Encoder):
    """The embedded encoder of Moonshine tiny (6 blocks, 41.67 frames a second), on one CPU thread."""

    batch_seconds = 8.0  # what fits in a core's cache: 15 clips of 8 s together take a tenth longer than one by one

    def __init__(self, layers: Sequence[int] | None = None, block_seconds: float = BLOCK_SECONDS) -> None:
        path = embedded("moonshine-tiny/encoder")
        chosen = _check_layers("moonshine-tiny", layers, moonshine.LAYERS, moonshine.DEFAULT_LAYER)
        weights = fingerprint({"file": path, "arithmetic": "float32"})
        super().__init__(
            "moonshine-tiny", chosen, moonshine.HOP, moonshine.FIRST_FRAME, moonshine.DIMENSION, weights, block_seconds
        )
        self._session = moonshine.moonshine_session(path, chosen)

    def _forward(self, batch: np.ndarray) -> np.ndarray:
        return np.concatenate(self._session.run(None, {"input_values": batch}), axis=-1)


class HubertEncoder(Encoder):
    """A HuBERT of transformers, by hub name or local folder; on the GPU if there is one."""

    def __init__(self, name: str, layers: Sequence[int] | None = None, block_seconds: float = BLOCK_SECONDS) -> None:
        from transformers import AutoConfig, HubertModel

        try:
            config = AutoConfig.from_pretrained(name)
            if config.model_type != "hubert":
                raise UserError(
                    f"{name}: is a {config.model_type} model; encoders are moonshine-tiny and HuBERT models"
                )
            model = HubertModel.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name}: cannot be loaded as a HuBERT model ({str(error).splitlines()[0]})") from error
        # HuBERT base is read at layer 6 of 12, as VoxtLM and the paper do; others at the same relative depth.
        chosen = _check_layers(name, layers, config.num_hidden_layers, config.num_hidden_layers // 2)
        self._device = usual_device()
        # One block more than is read, because the final layer norm is applied to what leaves the last.
        model.encoder.layers = model.encoder.layers[: max(chosen) + 1]
        model.eval()
        self._model: torch.nn.Module = torch.nn.Module.to(model, self._device)
        self._normalise = normalises_input(name, config.feat_extract_norm == "layer")
        hop = int(np.prod(config.conv_stride))
        first = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            first = (first - 1) * stride + kernel
        weights = hash_parameters(model) + (" normalised" if self._normalise else "")
        super().__init__(name, chosen, hop, first, config.hidden_size, weights, block_seconds)

    def _forward(self, batch: np.ndarray) -> np.ndarray:
        if self._normalise:
            batch = (batch - batch.mean(1, keepdims=True)) / np.sqrt(batch.var(1, keepdims=True) + 1e-7)
        with torch.inference_mode():
            output = self._model(torch.from_numpy(batch).to(self._device), output_hidden_states=True)
        states: np.ndarray = torch.cat([output.hidden_states[i].float() for i in self.layers], -1).cpu().numpy()
        return states


def load_encoder(
    name: str = "moonshine-tiny", layers: Sequence[int] | None = None, block_seconds: float = BLOCK_SECONDS
) -> Encoder:
    """Load an encoder.

    Args:
        name: ``moonshine-tiny`` (embedded), or a HuBERT as a hub name or local folder.
        layers: indices into ``hidden_states``; None takes 5 of 6 for Moonshine and the middle one for HuBERT.
        block_seconds: audio longer than this and the context is encoded in blocks.

    Raises:
        UserError: no such model or layer, or a package is missing.
    """
    if block_seconds <= 0:
        raise UserError(f"block_seconds: {block_seconds} is not above 0")
    if name == "moonshine-tiny":
        return MoonshineEncoder(layers, block_seconds)
    return HubertEncoder(name, layers, block_seconds)


def _check_layers(name: str, layers: Sequence[int] | None, last: int, default: int) -> tuple[int, ...]:
    if layers is not None and not layers:
        raise UserError(f"{name}: layers: [] (expected at least one layer)")
    for layer in layers or ():
        if not 0 <= layer <= last:
            raise UserError(f"{name}: has no layer {layer}; layers are 0 to {last}")
    return (default,) if layers is None else tuple(layers)


def normalises_input(name: str, otherwise: bool) -> bool:
    """Say whether a model wants waveforms of mean 0 and variance 1; a folder may not tell."""
    from transformers import AutoFeatureExtractor

    try:
        return bool(AutoFeatureExtractor.from_pretrained(name).do_normalize)
    except (OSError, ValueError):
        if not Path(name).is_dir():
            raise
        return otherwise


def hash_parameters(model: torch.nn.Module) -> str:
    """Hash all weights of a model."""
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
