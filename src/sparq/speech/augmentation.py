"""Speech disturbed: other rates, rooms, noise, telephone lines, clipping and levels, each drawn from a seed.

What happens to an utterance is drawn first (:func:`draw_disturbance`) and done later (:func:`disturb`), in the order in
which it happens to speech: a speaker, a room, what else is heard in it, a line, a recording. Filters are applied by
FFT without delay, so that words stay where they are but for the rate, which moves all by one factor.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import soxr

from sparq.config.augmentation import AugmentationConfig
from sparq.speech.audio import RATE

_LINE_RATE = 8000
_LINE_BAND = (300.0, 3400.0)  # Hz
_LINE_SLOPE = 100.0  # Hz over which the line's band begins and ends
_MU = 255.0  # ITU-T G.711
_TALKERS = 5  # heard in babble
_EARLY = (0.003, 0.05)  # seconds after the direct sound within which single echoes come
_CLIPPED = (0.002, 0.02)  # shares of the samples that are cut off
_HARMONICS = 6  # of a hum


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """What happens to an utterance.

    Attributes:
        rate: at which it is played; 1.1 is a tenth faster and higher.
        reverberation: seconds in which the room's echo falls by 60 dB; 0 for none.
        direct: ratio in dB of the direct sound to the echo.
        noise: its kind, or None.
        snr: ratio in dB of speech to noise.
        telephone: whether it comes by a telephone line.
        clipped: share of the samples that is cut off.
        level: gain in dB.
        seed: of the room and the noise.
    """

    rate: float = 1.0
    reverberation: float = 0.0
    direct: float = 0.0
    noise: str | None = None
    snr: float = 0.0
    telephone: bool = False
    clipped: float = 0.0
    level: float = 0.0
    seed: int = 0


def draw_disturbance(config: AugmentationConfig, chance: random.Random) -> Disturbance | None:
    """Draw what happens to an utterance; None if it stays as it is."""
    if chance.random() >= config.share:
        return None
    drawn = Disturbance(
        rate=chance.uniform(*config.rates), level=chance.uniform(*config.levels), seed=chance.getrandbits(32)
    )
    if chance.random() < config.room:
        drawn = dataclasses.replace(
            drawn, reverberation=chance.uniform(*config.reverberation), direct=chance.uniform(*config.direct)
        )
    if chance.random() < config.noise:
        drawn = dataclasses.replace(drawn, noise=chance.choice(config.noises), snr=chance.uniform(*config.snr))
    telephone = chance.random() < config.telephone
    clipped = chance.uniform(*_CLIPPED) if chance.random() < config.clipping else 0.0
    return dataclasses.replace(drawn, telephone=telephone, clipped=clipped)


def disturb(waveform: np.ndarray, disturbance: Disturbance, others: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Disturb an utterance.

    Args:
        waveform: float32 ``[samples]`` at 16 kHz, full scale at ±1.
        disturbance: what happens; the same gives the same.
        others: waveforms of which babble is made; without any, it is pink noise.

    Returns:
        float32 ``[round(samples / rate)]`` at 16 kHz within ±1, in which word times are those of the waveform divided
        by the rate.
    """
    random = np.random.default_rng(disturbance.seed)
    heard = change_rate(waveform, disturbance.rate)
    if disturbance.reverberation:
        heard = reverberate(heard, room_response(disturbance.reverberation, disturbance.direct, random))
    if disturbance.noise:
        heard = add_noise(heard, make_noise(disturbance.noise, len(heard), random, others), disturbance.snr)
    if disturbance.telephone:
        heard = telephone_line(heard)
    if disturbance.clipped:
        limit = np.quantile(np.abs(heard), 1.0 - disturbance.clipped)
        heard = np.clip(heard, -limit, limit)
    return np.clip(heard * 10 ** (disturbance.level / 20), -1.0, 1.0).astype(np.float32)


def change_rate(waveform: np.ndarray, rate: float) -> np.ndarray:
    """Play faster and higher: ``[samples]`` to ``[round(samples / rate)]``."""
    if rate == 1.0:
        return waveform
    return _fitted(soxr.resample(waveform, RATE * rate, RATE), round(len(waveform) / rate))


def room_response(seconds: float, direct: float, random: np.random.Generator) -> np.ndarray:
    """Draw the impulse response of a room: the direct sound, single echoes, and noise that decays exponentially.

    Args:
        seconds: in which the noise falls by 60 dB.
        direct: ratio in dB of the direct sound's energy to all that follows.
        random: draws the echoes and the noise.

    Returns:
        float64 ``[samples]`` at 16 kHz, which begins with the direct sound, at 1.
    """
    times = np.arange(1, round(seconds * RATE) + 1) / RATE
    decay = 10 ** (-3 * times / seconds)
    echo = random.standard_normal(len(times)) * decay * (times > _EARLY[0])
    first, last = (min(len(times) - 1, round(edge * RATE)) for edge in _EARLY)
    early = random.integers(first, max(first + 1, last), 8)
    echo[early] += random.choice([-1.0, 1.0], len(early)) * 4 * decay[early]
    energy = np.sum(echo**2)
    return np.concatenate([[1.0], echo * 10 ** (-direct / 20) / np.sqrt(energy or 1.0)])


def reverberate(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Put an utterance into a room, at the power and length it had."""
    size = _fast(len(waveform) + len(response) - 1)
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
    return wet * np.sqrt(_power(waveform) / (_power(wet) or 1.0))


def make_noise(kind: str, samples: int, random: np.random.Generator, others: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Make noise of any power: ``[samples]``.

    Args:
        kind: "white"; "pink", whose power falls by 3 dB an octave; "babble", up to five of the others at once, or pink
            noise without any; "hum", of mains of 50 or 60 Hz.
        samples: at 16 kHz.
        random: draws it.
        others: what babble is made of.
    """
    sounding = [other for other in others if other.any()]
    if kind == "babble" and sounding:
        babble = np.zeros(samples)
        for which in random.permutation(len(sounding))[:_TALKERS]:
            talker = sounding[which] / np.sqrt(_power(sounding[which]))
            babble += np.resize(np.roll(talker, random.integers(len(talker))), samples)
        return babble
    if kind == "hum":
        mains = random.choice([50.0, 60.0])
        turns = np.arange(samples) / RATE * mains * 2 * np.pi
        strengths = random.uniform(0, 1, _HARMONICS) / np.arange(1, _HARMONICS + 1)
        phases = random.uniform(0, 2 * np.pi, _HARMONICS)
        return np.sum([s * np.sin(n * turns + p) for n, (s, p) in enumerate(zip(strengths, phases, strict=True), 1)], 0)
    white = random.standard_normal(samples)
    if kind == "white":
        return white
    size = _fast(samples)
    bins = np.maximum(np.arange(size // 2 + 1), size * 20.0 / RATE)  # flat below 20 Hz
    return np.fft.irfft(np.fft.rfft(white, size) / np.sqrt(bins), size)[:samples]


def add_noise(waveform: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Add noise at a ratio of powers in dB; to silence nothing is added."""
    return waveform + noise * np.sqrt(_power(waveform) / (_power(noise) or 1.0) * 10 ** (-snr / 10))


def telephone_line(waveform: np.ndarray) -> np.ndarray:
    """Send through a line of 300 to 3400 Hz at 8 kHz, in 8 bits of mu-law (ITU-T G.711), and back to 16 kHz."""
    size = _fast(len(waveform))
    bins = np.fft.rfftfreq(size, 1 / RATE)
    low, high = ((bins - _LINE_BAND[0]) / _LINE_SLOPE, (_LINE_BAND[1] - bins) / _LINE_SLOPE)
    band = np.sin(np.pi / 2 * np.clip(np.minimum(low, high), 0.0, 1.0)) ** 2
    narrow = np.fft.irfft(np.fft.rfft(waveform, size) * band, size)[: len(waveform)]
    coded = np.clip(narrow[:: RATE // _LINE_RATE], -1.0, 1.0)
    companded = np.sign(coded) * np.log1p(_MU * np.abs(coded)) / np.log1p(_MU)
    companded = np.round(companded * 127) / 127
    decoded = np.sign(companded) * np.expm1(np.abs(companded) * np.log1p(_MU)) / _MU
    return _fitted(soxr.resample(decoded, _LINE_RATE, RATE), len(waveform))


def _power(waveform: np.ndarray) -> float:
    return float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0


def _fast(samples: int) -> int:
    """Return the next length of which an FFT is fast."""
    return int(1 << max(1, samples - 1).bit_length())


def _fitted(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Cut off or add the few samples that a resampler gives too many or too few."""
    return np.pad(waveform[:samples], (0, max(0, samples - len(waveform))))
