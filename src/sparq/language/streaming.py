"""Speaking as the pieces come: the language model writes in a thread of its own, the vocoder speaks what is there."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from typing_extensions import override

from sparq.language.generation import GenerationOptions, generate
from sparq.language.vocabulary import Modality, Vocabulary


class _Pieces(BaseStreamer, StoppingCriteria):
    """Hands pieces over as they are generated, and stops the generation when nobody wants more."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self.unwanted = False
        self._begun = False

    @override
    def put(self, value: Tensor) -> None:
        if self._begun:
            self.queue.put(int(value.reshape(-1)[0]))
        self._begun = True  # the first that comes is the prompt

    @override
    def end(self) -> None: ...

    @override
    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return input_ids.new_full((len(input_ids),), self.unwanted).bool()


def stream_pieces(
    model: Any,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    target: Modality,
    options: GenerationOptions,
    index: int,
    beginnings: np.ndarray | None = None,
) -> Generator[int, None, None]:
    """Continue a prompt and give each piece when it is found, without the end.

    The pieces are those of :func:`sparq.language.generation.generate`.

    Args:
        model: a causal language model.
        vocabulary: what its ids mean.
        prompt: ids.
        target: what is to be generated.
        options: how; a beam, which only knows its answer at its end, has a width of 1.
        index: which prompt of a call this would be, for sampling to draw the same.
        beginnings: ids that may be the first.
    """
    pieces = _Pieces()

    def work() -> None:
        try:
            generate(model, vocabulary, [prompt], target, options, first=index, beginnings=beginnings, watcher=pieces)
        except BaseException as error:  # noqa: BLE001 - is raised again where the pieces are asked for
            pieces.queue.put(error)
        pieces.queue.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (piece := pieces.queue.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            if piece != vocabulary.end_id:
                yield piece
    finally:
        pieces.unwanted = True
        thread.join()


def stream_units(vocabulary: Vocabulary, pieces: Iterator[int]) -> Iterator[int]:
    """Give the units of pieces; where two pieces meet, a repeat may still have to be merged."""
    units = (unit for piece in pieces for unit in vocabulary.decode_units([piece]))
    return (unit for unit, _ in itertools.groupby(units)) if vocabulary.deduplicate else units
