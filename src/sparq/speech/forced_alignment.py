"""Forced alignment: which frame of an utterance belongs to which of the phones that are known to be in it (Viterbi)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def align(log_probabilities: np.ndarray, sequence: Sequence[int], optional: int) -> tuple[np.ndarray, float] | None:
    """Find the likeliest path that goes through a sequence of classes in order, at least one frame in each.

    Args:
        log_probabilities: of the classes, ``[frames, classes]``.
        sequence: classes, in the order in which they are heard.
        optional: the class that may be left out wherever it stands (pauses); no two of it stand together.

    Returns:
        The class of every frame, int64 ``[frames]``, and the mean log-probability of a frame; None if there are more
        classes that may not be left out than frames.
    """
    frames, states = len(log_probabilities), np.asarray(sequence, np.int64)
    left_out = states == optional
    if not len(states) or not frames or frames < (~left_out).sum():
        return None
    emitted = log_probabilities[:, states]
    skips = np.zeros(len(states), bool)  # states that may follow the last but one, because the one between is optional
    skips[2:] = left_out[1:-1]
    score = np.full(len(states), -np.inf)
    score[0] = emitted[0, 0]
    if left_out[0] and len(states) > 1:
        score[1] = emitted[0, 1]
    steps = np.zeros((frames, len(states)), np.int8)  # how many states back each came from
    candidates = np.full((3, len(states)), -np.inf)
    for frame in range(1, frames):
        candidates[0] = score
        candidates[1, 1:] = score[:-1]
        candidates[2, 2:] = np.where(skips[2:], score[:-2], -np.inf)
        steps[frame] = candidates.argmax(axis=0)
        score = candidates.max(axis=0) + emitted[frame]
    state = len(states) - 1
    if left_out[-1] and len(states) > 1 and score[-2] > score[-1]:
        state -= 1
    total = float(score[state])
    path = np.empty(frames, np.int64)
    for frame in range(frames - 1, -1, -1):
        path[frame] = states[state]
        state -= int(steps[frame, state])
    return path, total / frames
