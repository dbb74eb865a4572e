"""Long recordings cut at their pauses into stretches of speech that a model was trained on."""

from __future__ import annotations

import dataclasses

import numpy as np

from sparq.errors import UserError
from sparq.speech.activity import FRAME, Detector
from sparq.speech.audio import RATE

_ON, _OFF = 0.5, 0.35  # probabilities at which speech begins and ends, as Silero's authors have them
_LEAST = 6  # frames; what is shorter is no speech, but a click
_MARGIN = 6  # frames kept on either side of speech
_APART = 47  # frames, 1.5 s; across such a pause nothing is one stretch
_SHORT = 62  # frames, 2 s; no stretch is left as short as this beside another that it fits with
_DIP = 6  # frames over which the least speech is looked for where nobody pauses
_LIMIT = 16  # frames, 0.5 s; there is no sense in shorter stretches


@dataclasses.dataclass(frozen=True)
class Span:
    """Samples ``start:stop`` of a recording at 16 kHz, in which someone speaks."""

    start: int
    stop: int


def spoken_spans(waveform: np.ndarray, detector: Detector, longest: float) -> list[Span]:
    """Find the stretches of speech in a recording.

    A stretch ends where nobody speaks for 1.5 s. One that is too long is cut amid its longest pause, and again, or
    where speech is least likely if there is no pause. What then is shorter than 2 s is put back to its neighbour if
    both fit. A margin of 0.2 s is kept around speech, and what is no speech is left out.

    Args:
        waveform: float32 ``[samples]`` at 16 kHz.
        detector: who says what is speech.
        longest: seconds that a stretch may last, at least 0.5.

    Returns:
        The stretches in their order, none longer than ``longest``, without overlap.

    Raises:
        UserError: ``longest`` is too short to hear anything in.
    """
    limit = int(longest * RATE) // FRAME
    if limit < _LIMIT:
        raise UserError(f"stretches of {longest:.2f} s are too short to listen to (expected at least 0.52 s)")
    likely = detector.probabilities(waveform)
    speech = _spoken(likely)
    pieces: list[tuple[int, int]] = []
    waiting = [(0, len(speech))]
    while waiting:
        start, stop = _trimmed(speech, *waiting.pop())
        cut = _pause(speech, start, stop, limit)
        if cut is None and stop - start > limit:
            cut = _least_likely(likely, start, stop)
        if cut is not None:
            # What was put last is taken next, so the pieces come out in order.
            waiting += [(cut, stop), (start, cut)]
        elif stop > start:
            pieces.append((start, stop))
    return [Span(start * FRAME, min(stop * FRAME, len(waveform))) for start, stop in _without_short_ones(pieces, limit)]


def _spoken(likely: np.ndarray) -> np.ndarray:
    """Say for each frame whether someone speaks, bool [frames]: likely enough to begin, or still to go on."""
    speech = np.zeros(len(likely), bool)
    for start, stop in _runs(likely >= _OFF):
        begun = np.flatnonzero(likely[start:stop] >= _ON)
        if begun.size and stop - start - begun[0] >= _LEAST:
            speech[start + begun[0] : stop] = True
    return speech


def _runs(flags: np.ndarray) -> np.ndarray:
    """Give start and stop of every run of true ones, int64 [runs, 2]."""
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def _trimmed(speech: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Leave out the silence at both edges but for a margin; an empty stretch if all is silent."""
    found = np.flatnonzero(speech[start:stop])
    if not found.size:
        return start, start
    return max(start, start + int(found[0]) - _MARGIN), min(stop, start + int(found[-1]) + 1 + _MARGIN)


def _pause(speech: np.ndarray, start: int, stop: int, limit: int) -> int | None:
    """Choose the middle of the longest pause inside a stretch, if the stretch or the pause is too long."""
    pauses = _runs(~speech[start:stop])
    pauses = pauses[(pauses[:, 0] > _MARGIN) & (pauses[:, 1] < stop - start - _MARGIN)]
    if not len(pauses):
        return None
    begin, end = pauses[np.argmax(pauses[:, 1] - pauses[:, 0])]
    return start + int(begin + end) // 2 if stop - start > limit or end - begin >= _APART else None


def _least_likely(likely: np.ndarray, start: int, stop: int) -> int:
    """Choose where in the middle half of a stretch without pauses speech is least likely."""
    quarter = (stop - start) // 4
    middle = likely[start + quarter : stop - quarter]
    width = min(_DIP, len(middle))
    smooth = np.convolve(middle, np.ones(width) / width, "valid")
    return start + quarter + int(smooth.argmin()) + width // 2


def _without_short_ones(pieces: list[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """Join neighbours of which one is short, if no long pause is between them and they fit together."""
    joined: list[tuple[int, int]] = []
    for start, stop in pieces:
        if joined:
            first, last = joined[-1]
            short = min(last - first, stop - start) < _SHORT
            if short and start - last < _APART - 2 * _MARGIN and stop - first <= limit:
                joined[-1] = first, stop
                continue
        joined.append((start, stop))
    return joined
