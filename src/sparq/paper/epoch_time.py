"""Table 3: how long an epoch of full fine-tuning takes with each attention.

The paper reports 1.28 and 1.33 times shorter epochs with its attention, and no reason why. Here every attention takes
the same steps on the same batches in turn, so that a machine's moods strike all of them, and the median step times the
number of steps in an epoch is the epoch.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from sparq.adaptation.optimizers import make_optimizer
from sparq.attention import install
from sparq.corpus.corpus import Corpus
from sparq.device import synchronize, usual_device
from sparq.language.vocabulary import Vocabulary
from sparq.making import example_stream
from sparq.recipe import Recipe

STEPS = 12
WARM_UP = 2  # steps that are not counted: memory is laid out and kernels are chosen in them


@dataclasses.dataclass(frozen=True)
class EpochTime:
    """How long training takes with one attention.

    Attributes:
        sink: the attention.
        seconds_per_step: median over the steps.
        minutes_per_epoch: of all of them.
        ratio: to the ordinary attention's median step, median over the pairs of steps on one batch.
    """

    sink: str
    seconds_per_step: float
    minutes_per_epoch: float
    ratio: float


def epoch_times(
    model: PreTrainedModel,
    corpus: Corpus,
    vocabulary: Vocabulary,
    recipe: Recipe,
    sinks: Sequence[str] = ("none", "max", "zero"),
    note: Callable[[str], None] = lambda _: None,
) -> list[EpochTime]:
    """Time steps of full fine-tuning; the model itself is not changed.

    Args:
        model: in full precision, with the ordinary attention.
        corpus: whose batches it learns from.
        vocabulary: how they are written.
        recipe: attention, optimizer and precision.
        sinks: what is compared; the first is what the others are compared to.
        note: told of every step.
    """
    config = recipe.adaptation
    stream = example_stream(model, corpus, vocabulary, config)
    batches = list(itertools.islice(iter(stream), WARM_UP + STEPS))
    seconds: dict[str, list[float]] = {sink: [] for sink in sinks}
    device, learners = usual_device(), {}
    for sink in sinks:
        learner = copy.deepcopy(model)
        install(learner, **recipe.attention.arguments(sink))
        torch.nn.Module.to(learner, device)
        learners[sink] = (learner.train(), make_optimizer(learner, config))
    half = config.precision != "float32"
    for index, batch in enumerate(batches):
        note(f"step {index + 1} of {len(batches)}")
        for sink, (learner, optimizer) in learners.items():
            begun = time.perf_counter()
            with torch.autocast(device.type, getattr(torch, config.precision), enabled=half):
                loss = learner(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            synchronize(device)
            seconds[sink].append(time.perf_counter() - begun)
    counted = {sink: taken[WARM_UP:] for sink, taken in seconds.items()}
    first = counted[sinks[0]]
    epoch = stream.batches_per_epoch
    return [
        EpochTime(
            sink,
            statistics.median(taken),
            statistics.median(taken) * epoch / 60,
            statistics.median(ours / theirs for ours, theirs in zip(taken, first, strict=True)),
        )
        for sink, taken in counted.items()
    ]
