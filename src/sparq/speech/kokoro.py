"""Kokoro's English speakers, women and men of America and England: one 8-bit model of 82 M parameters, many styles.

Model and styles (Apache-2.0) travel in packages of two registries: four Python packages hold the graph's parts, the
npm package kokoro-js a file of styles for each speaker. Phonemes come from hibari, which is a copy of one of them.
"""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime

from sparq.assets import cache, embedded
from sparq.errors import UserError
from sparq.speech.hibari import PhonemeVoice, needs_onnx, with_output

SPEAKERS = (
    "af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_nova", "af_river",
    "af_sarah", "af_sky", "am_adam", "am_echo", "am_eric", "am_fenrir", "am_liam", "am_michael", "am_onyx", "am_puck",
    "am_santa", "bf_alice", "bf_emma", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_george", "bm_lewis",
)  # fmt: skip
"""American (a) and British (b) women (f) and men (m), by Kokoro's names."""

PARTS = 4  # packages that the graph is cut into
_STYLE = 256  # numbers in a style; a file has one for each number of phonemes


class Kokoro(PhonemeVoice):
    """A speaker of Kokoro 1.0, in 8-bit products, on one thread.

    Args:
        name: "kokoro-" and one of :data:`SPEAKERS`.
    """

    def __init__(self, name: str) -> None:
        speaker = name.removeprefix("kokoro-")
        super().__init__(name, british=speaker.startswith("b"))
        path = cache("kokoro") / f"{speaker}.bin"
        if not path.is_file():
            raise UserError(
                f"{name}: {path} is not there; run: npm pack kokoro-js@1.2.1 && mkdir -p {path.parent} && "
                f"tar xzf kokoro-js-1.2.1.tgz -C {path.parent} --strip-components=2 package/voices"
            )
        styles = np.fromfile(path, np.float32)
        if not styles.size or styles.size % _STYLE:
            raise UserError(f"{path}: not a file of Kokoro's styles ({styles.size} numbers)")
        self._styles = styles.reshape(-1, 1, _STYLE)
        self._session = _session()

    def _say(self, ids: np.ndarray, speed: float, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        style = self._styles[min(ids.shape[1] - 2, len(self._styles) - 1)]
        given = {"tokens": ids, "style": style, "speed": np.array([speed], np.float32)}
        waveform, frames = self._session.run(None, given)
        return waveform.reshape(-1), frames.reshape(-1)


@functools.cache
def _session() -> onnxruntime.InferenceSession:
    """Open the model, once for all speakers of a process."""
    needs_onnx("kokoro")
    import onnx

    parts = [embedded(f"kokoro/{part}").read_bytes() for part in range(1, PARTS + 1)]
    return with_output(onnx.load_from_string(b"".join(parts)), "/encoder/Clip_output_0")  # frames of each phoneme
