"""The judge: a speech recogniser that was never trained here, which reads what the models say.

The paper's is Whisper (table 1: TTS WER by Whisper medium); offline it is Moonshine tiny (3.2 % WER on 100 LJ Speech
sentences read by hibari, which is therefore the floor of any TTS WER measured with the two).
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparq.assets import embedded
from sparq.errors import UserError
from sparq.speech.audio import RATE, check_waveform


class Recogniser(abc.ABC):
    """Speech to text.

    Attributes:
        name: what ``load_recogniser`` was given.
    """

    name: str

    @abc.abstractmethod
    def _transcribe(self, waveform: np.ndarray) -> str:
        """Transcribe one checked waveform of any length."""

    def transcribe(self, waveforms: Sequence[np.ndarray]) -> list[str]:
        """Transcribe 16 kHz waveforms, float32 ``[samples]`` of any length; silence gives an empty string.

        Raises:
            UserError: a waveform is empty or not finite.
        """
        checked = [check_waveform(wave, f"waveform {i}") for i, wave in enumerate(waveforms)]
        return [self._transcribe(wave) if wave.any() else "" for wave in checked]


class MoonshineRecogniser(Recogniser):
    """The embedded Moonshine tiny; its own voice activity detector cuts long audio into lines."""

    name = "moonshine-tiny"

    def __init__(self) -> None:
        folder = embedded("moonshine-tiny")
        # This module, not the package's microphone module, which wants PortAudio on the machine.
        from moonshine_voice.moonshine_api import ModelArch
        from moonshine_voice.transcriber import Transcriber

        self._transcriber = Transcriber(str(folder), ModelArch.TINY)

    def _transcribe(self, waveform: np.ndarray) -> str:
        transcript = self._transcriber.transcribe_without_streaming(waveform.tolist(), RATE)
        return " ".join(line.text.strip() for line in transcript.lines).strip()


class WhisperRecogniser(Recogniser):
    """A Whisper of transformers, by hub name or local folder, greedy; longer audio in windows of 30 s."""

    def __init__(self, name: str) -> None:
        from transformers import AutoConfig, pipeline

        from sparq.device import usual_device

        self.name = name
        try:
            config = AutoConfig.from_pretrained(name)
            if config.model_type != "whisper":
                raise UserError(f"{name}: is a {config.model_type} model; judges are moonshine-tiny and Whisper models")
            self._pipeline: Any = pipeline("automatic-speech-recognition", model=name, device=usual_device())
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name}: cannot be loaded as a Whisper model ({str(error).splitlines()[0]})") from error

    def _transcribe(self, waveform: np.ndarray) -> str:
        long = len(waveform) > 30 * RATE
        given = {"raw": waveform, "sampling_rate": RATE}
        return str(self._pipeline(given, return_timestamps=long)["text"]).strip()


def load_recogniser(name: str = "moonshine-tiny") -> Recogniser:
    """Load a judge: ``moonshine-tiny`` (embedded), or a Whisper as a hub name or local folder.

    Raises:
        UserError: no such model, or a package is missing.
    """
    return MoonshineRecogniser() if name == "moonshine-tiny" else WhisperRecogniser(name)
