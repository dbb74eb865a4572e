"""Synthesis as the units come: chunks of a waveform that equal the one made at once.

Every part of the vocoder looks a bounded way ahead: the duration predictor ``DurationPredictor.context`` merged units,
the generator ``UnitGenerator.context`` frames, the source-filter ``REACH`` of its own frames. Each chunk is therefore
computed with that much around it and cut out. What goes through a whole utterance, the phase of the pulses and the
noise, is carried from chunk to chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from sparq.speech.duration import DurationPredictor
from sparq.speech.generator import UnitGenerator
from sparq.speech.source_filter import REACH, Noise


def stream_frames(predictor: DurationPredictor, units: Iterable[int], speaker: Tensor | None = None) -> Iterator[int]:
    """Repeat each merged unit for as many frames as it lasts, as soon as the units that decide it have come.

    Args:
        predictor: says how long units last.
        units: merged.
        speaker: [1, speaker_dim] for a predictor of many voices.
    """
    context = predictor.context
    known: list[int] = []  # the unit that is next, with as much before it as it depends on, and what has come after it
    before = 0

    def durations() -> list[int]:
        window = torch.tensor([known], device=predictor.last.weight.device)
        length = torch.tensor([len(known)], device=window.device)
        return list(predictor.durations(window, length, speaker)[0].tolist())

    for unit in units:
        known.append(unit)
        if len(known) > before + context:
            yield from itertools.repeat(known[before], durations()[before])
            before += 1
            if before > context:
                del known[0]
                before -= 1
    if known:
        for last, frames in zip(known[before:], durations()[before:], strict=True):
            yield from itertools.repeat(last, frames)


def look_ahead(generator: UnitGenerator) -> int:
    """Frames that have to be known behind a chunk before it can be spoken."""
    return generator.context + _tail(generator)


def _tail(generator: UnitGenerator) -> int:
    """Frames around a chunk whose features its samples depend on."""
    if generator.source_filter is None:
        return 0
    return -(-REACH * generator.source_filter.hop // generator.config.hop)


def stream_waveform(
    generator: UnitGenerator, frames: Iterable[int], chunk: int, speaker: Tensor | None = None
) -> Iterator[Tensor]:
    """Speak frames as they come.

    Args:
        generator: in evaluation mode.
        frames: a unit each, repeats not merged.
        chunk: frames that are spoken at a time; the last chunk may be shorter.
        speaker: [1, speaker_dim] for a generator of many voices.

    Yields:
        Samples [chunk · hop]; all of them together are ``generator(units)``.
    """
    context, tail = generator.context, _tail(generator)
    rendering = _Rendering(generator)
    kept: list[int] = []  # frames from ``offset`` on
    offset, spoken = 0, 0

    def render(stop: int) -> Tensor:
        end = offset + len(kept)
        left, right = max(0, spoken - tail), min(end, stop + tail)
        first, last = max(0, left - context), min(end, right + context)
        window = torch.tensor([kept[first - offset : last - offset]], device=generator.embedding.weight.device)
        features, _ = generator.features(window, None, speaker)
        steps = features.shape[2] // window.shape[1]
        exact = features[..., (left - first) * steps : (right - first) * steps]
        return rendering.samples(exact, spoken - left, stop - left, max(0, stop - tail) - left)

    for unit in frames:
        kept.append(unit)
        if offset + len(kept) == spoken + chunk + context + tail:
            yield render(spoken + chunk)
            spoken += chunk
            passed = max(0, spoken - tail - context) - offset
            del kept[:passed]
            offset += passed
    while spoken < offset + len(kept):
        stop = min(spoken + chunk, offset + len(kept))
        yield render(stop)
        spoken = stop


class _Rendering:
    """Makes samples of features; remembers the phase and the noise where the next features begin."""

    def __init__(self, generator: UnitGenerator) -> None:
        self._generator = generator
        self._cycles = 0.0
        self._noise = Noise()
        self._drawn = torch.zeros(0)

    def samples(self, features: Tensor, start: int, stop: int, next_start: int) -> Tensor:
        """Render exact features [1, channels, steps] and give the samples of frames ``start`` to ``stop`` in them.

        ``next_start`` is the frame in them that the next features begin with.
        """
        generator, hop = self._generator, self._generator.config.hop
        if generator.source_filter is None:
            return torch.tanh(features[0, 0])[start * hop : stop * hop]
        pitch, inner = features[:, -1].exp(), generator.source_filter.hop
        self._drawn = torch.cat([self._drawn, self._noise.take(features.shape[2] * inner - len(self._drawn))])
        wave = generator.source_filter(features[:, :-1], pitch, cycles=self._cycles, noise=self._drawn)[0]
        passed = next_start * hop
        hertz = pitch[0, : passed // inner].double()
        self._cycles = float((self._cycles + hertz.sum() * inner / generator.config.rate) % 1)
        self._drawn = self._drawn[passed:]
        return wave[start * hop : stop * hop]
