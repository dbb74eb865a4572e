"""Long recordings cut at their silences into stretches that a model was trained on."""

from __future__ import annotations

import numpy as np

from sparq.errors import UserError
from sparq.speech.audio import RATE

_FRAME = RATE // 50  # 20 ms
_SILENT = -65.0  # dB below full scale; nothing under it is taken for speech
_MARGIN = 10  # frames kept on either side of speech
_SHORTEST = 50  # frames; no cut of more than two seconds leaves less than one, however long the silence
_LIMIT = 25  # frames; there is no sense in shorter stretches
_DIP = 10  # frames over which the quietest moment is looked for where nobody pauses


def split_at_silences(waveform: np.ndarray, longest: float) -> list[np.ndarray]:
    """Cut a recording into stretches of speech, the longest silences first.

    A stretch that is short enough is not cut. Silence at the edges of a stretch is left out but for 0.2 s, and a
    recording in which nothing is heard has no stretches. Where a speaker never pauses, the cut is at the quietest
    moment of the middle half.

    Args:
        waveform: float32 [samples] at 16 kHz.
        longest: seconds that a stretch may last, at least 0.5.

    Returns:
        The stretches in their order, each float32 [samples] and no longer than ``longest``.

    Raises:
        UserError: ``longest`` is too short to hear anything in.
    """
    level = _level(waveform)
    speech = level > _threshold(level)
    limit = int(longest * RATE) // _FRAME
    if limit < _LIMIT:
        raise UserError(f"stretches of {longest:.2f} s are too short to listen to (expected at least 0.5 s)")
    pieces: list[tuple[int, int]] = []
    waiting = [(0, len(level))]
    while waiting:
        start, stop = _trimmed(speech, *waiting.pop())
        if stop - start > limit:
            cut = _cut(level, speech, start, stop)
            # What was put last is taken next, so the pieces come out in order.
            waiting += [(cut, stop), (start, cut)]
        elif stop > start:
            pieces.append((start, stop))
    return [waveform[start * _FRAME : stop * _FRAME] for start, stop in pieces]


def _level(waveform: np.ndarray) -> np.ndarray:
    """Give the power of every frame in dB of full scale, float64 [frames]; the last may be padded with zeros."""
    frames = -(-len(waveform) // _FRAME)
    padded = np.zeros(frames * _FRAME)
    padded[: len(waveform)] = waveform
    return 10 * np.log10(np.square(padded).reshape(frames, _FRAME).mean(axis=1) + 1e-12)


def _threshold(level: np.ndarray) -> float:
    """Say above which level someone speaks: a third of the way from background to voice, within reason."""
    background, voice = np.percentile(level, (5, 95))
    # With little silence the background is speech itself, and with much noise it is close below it.
    bounded = np.clip(background + (voice - background) / 3, voice - 40, voice - 20)
    return max(float(bounded), _SILENT)


def _trimmed(speech: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Leave out the silence at both edges but for a margin; an empty stretch if all is silent."""
    found = np.flatnonzero(speech[start:stop])
    if not found.size:
        return start, start
    return max(start, start + int(found[0]) - _MARGIN), min(stop, start + int(found[-1]) + 1 + _MARGIN)


def _cut(level: np.ndarray, speech: np.ndarray, start: int, stop: int) -> int:
    """Choose where to cut a stretch that is too long: amid its longest silence, or where it is quietest."""
    shortest = min(_SHORTEST, (stop - start - 1) // 2)
    first, last = start + shortest, stop - shortest
    silent = np.concatenate([[False], ~speech[first:last], [False]])
    edges = np.flatnonzero(silent[1:] != silent[:-1]).reshape(-1, 2)
    if len(edges):
        begin, end = edges[np.argmax(edges[:, 1] - edges[:, 0])]
        return first + int(begin + end) // 2
    quarter = (stop - start) // 4
    middle = level[start + quarter : stop - quarter]
    smooth = np.convolve(middle, np.ones(_DIP) / _DIP, "valid")
    return start + quarter + int(smooth.argmin()) + _DIP // 2
