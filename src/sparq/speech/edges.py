"""Where speech begins and ends in a waveform: hardly any silence before it, and enough behind it.

Recordings begin with a third of a second of near silence, and a model that learnt from them speaks so. A recogniser
heard a word in it in one of ten phrases (``results/by_hand.json``, ``silence_before_speech``), and whoever
streams waits for it. Silence behind the last word, of which a model gives more or less, is what tells a recogniser that
it was the last (``silence_behind_speech`` there).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from sparq.speech.audio import RATE

LEAD = 0.05
"""Seconds that are left before the first loud sample."""

TAIL = 0.5
"""Seconds that there are at least behind the last loud sample."""

_LOUD = 0.01  # of what a waveform can hold


def from_onset(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Give a waveform from :data:`LEAD` before its first loud sample on; one that has none whole.

    Args:
        parts: of the waveform, float32 [samples] at 16 kHz, in order; each is asked for when it is needed.

    Yields:
        Waveforms that follow each other; how the waveform was cut into parts does not change what they are together.
    """
    held: list[np.ndarray] | None = []
    for part in parts:
        if held is None:
            yield part
            continue
        held.append(part)
        loud = np.flatnonzero(np.abs(part) > _LOUD)
        if loud.size:
            whole = np.concatenate(held)
            yield whole[max(0, len(whole) - len(part) + int(loud[0]) - round(LEAD * RATE)) :]
            held = None
    if held:
        yield np.concatenate(held)


def to_silence(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Give a waveform, and behind it what is missing of :data:`TAIL` of silence.

    Args:
        parts: see :func:`from_onset`.

    Yields:
        The parts as they come, then zeros, if the last loud sample is too near to the end.
    """
    missing = 0
    for part in parts:
        yield part
        loud = np.flatnonzero(np.abs(part) > _LOUD)
        missing = round(TAIL * RATE) + int(loud[-1]) + 1 if loud.size else missing
        missing -= len(part)
    if missing > 0:
        yield np.zeros(missing, np.float32)
