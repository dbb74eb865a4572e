"""Generation held to the target's modality: greedy, sampling and beam search, batched and cached.

The search itself is transformers' ``generate``. What is SpARQ's own is in front of it: ids of any other modality than
the target's can never come out, prompts of like length share a batch, and what comes out for a prompt does not depend
on the prompts beside it (random draws included).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    SuppressTokensAtBeginLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from typing_extensions import override

from sparq.attention.install import base_model
from sparq.errors import UserError
from sparq.language.generating import generating
from sparq.language.vocabulary import Modality, Vocabulary

METHODS = ("greedy", "sample", "beam")


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """How the next pieces are chosen.

    Attributes:
        method: "greedy", "sample" or "beam".
        beams: width of the beam search.
        length_penalty: a beam's score is its log-likelihood divided by its length to this power; 0 compares plain
            log-likelihoods, as VoxtLM does ("penalty 0").
        temperature: logits are divided by it before sampling.
        top_k: only so many likeliest pieces are sampled from; 0 for all.
        top_p: only the likeliest pieces that together reach this probability are sampled from.
        draws: how many answers are sampled, where the best of several is looked for.
        seed: of sampling; prompt i of a call draws the same whatever batch it is in.
        min_pieces: the end is not allowed before so many pieces.
        max_pieces: generation stops after so many pieces, or where the model's positions end.

    Raises:
        UserError: a value is out of its range; the message names key and value.
    """

    method: str = "greedy"
    beams: int = 5
    length_penalty: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    draws: int = 1
    seed: int = 0
    min_pieces: int = 1
    max_pieces: int = 300

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"method: {self.method!r} (expected one of {', '.join(METHODS)})")
        for name, least in {"beams": 1, "top_k": 0, "draws": 1, "seed": 0, "min_pieces": 0, "max_pieces": 1}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name}: {value!r} (expected a whole number of at least {least})")
        for name in ("length_penalty", "temperature", "top_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise UserError(f"{name}: {value!r} (expected a number)")
        if not self.temperature > 0:
            raise UserError(f"temperature: {self.temperature!r} (expected a number above 0)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p!r} (expected a number above 0, at most 1)")
        if self.min_pieces > self.max_pieces:
            raise UserError(f"min_pieces: {self.min_pieces} (expected at most max_pieces, which is {self.max_pieces})")

    @property
    def answers(self) -> int:
        """How many answers a search ends with."""
        return {"greedy": 1, "sample": self.draws, "beam": self.beams}[self.method]


def beam_search(beams: int) -> GenerationOptions:
    """Search with a beam of some width; 1 is greedy."""
    return GenerationOptions(method="beam", beams=beams) if beams > 1 else GenerationOptions()


class _Held(LogitsProcessor):
    """Makes every id impossible that is not allowed."""

    def __init__(self, allowed: Tensor) -> None:
        self._forbidden = ~allowed

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(self._forbidden, -torch.inf)


class _Noise(LogitsProcessor):
    """Adds Gumbel noise, so that the largest score is a sample of the softmax.

    Each row has a generator of its own, which transformers' sampling from one generator for a whole batch cannot give.
    """

    def __init__(self, seed: int, draws: Sequence[tuple[int, int]]) -> None:
        self._generators = [np.random.default_rng((seed, *draw)) for draw in draws]

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = np.stack([generator.gumbel(size=scores.shape[1]) for generator in self._generators])
        return scores + torch.from_numpy(noise).to(scores)


def generate(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    target: Modality,
    options: GenerationOptions | None = None,
    *,
    batch: int = 16,
    first: int = 0,
    beginnings: np.ndarray | None = None,
    watcher: Any = None,
) -> list[list[int]]:
    """Continue prompts with pieces of one modality.

    Args:
        model: a causal language model, or a PEFT model around one; any attention, any simulated quantisation.
        vocabulary: what its ids mean.
        prompts: ids of each prompt, see :func:`sparq.language.tasks.prompt`.
        target: what is to be generated.
        options: how; greedy if None.
        batch: prompts at once; what comes out does not depend on it.
        first: which prompt of a call the first of these would be, for sampling to draw the same.
        beginnings: bool [size of the vocabulary], the ids that may be the first; None for all of the target.
        watcher: a streamer of transformers that is a stopping criterion too, told of each piece; goes with one prompt,
            and with no beam.

    Returns:
        For each prompt the ids behind it, without the end.

    Raises:
        UserError: a prompt is empty or leaves no position to generate at.
    """
    draws = [(first + index, 0) for index in range(len(prompts))]
    options = options or GenerationOptions()
    found = _search(model, vocabulary, prompts, target, options, draws, 1, batch, beginnings, watcher)
    return [best for (best,) in found]


def candidates(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    target: Modality,
    options: GenerationOptions,
    *,
    batch: int = 16,
    first: int = 0,
    beginnings: np.ndarray | None = None,
) -> list[list[list[int]]]:
    """Continue prompts as `generate` does, and give all that the search ends with (``options.answers``).

    Args:
        model: see `generate`.
        vocabulary: see `generate`.
        prompts: see `generate`.
        target: see `generate`.
        options: see `generate`.
        batch: see `generate`.
        first: see `generate`.
        beginnings: see `generate`.

    Returns:
        For each prompt all answers: those of a beam, the best first; or so many draws.

    Raises:
        UserError: see `generate`.
    """
    # The draws of a prompt share batches, so that five of one sentence take little longer than one.
    copies = options.draws if options.method == "sample" else 1
    draws = [(index, draw) for index in range(len(prompts)) for draw in range(copies)]
    found = _search(
        model,
        vocabulary,
        [prompts[index] for index, _ in draws],
        target,
        options,
        [(first + index, draw) for index, draw in draws],
        options.answers // copies,
        batch,
        beginnings,
        None,
    )
    return [list(itertools.chain(*found[start : start + copies])) for start in range(0, len(found), copies)]


def _search(
    model: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    target: Modality,
    options: GenerationOptions,
    draws: Sequence[tuple[int, int]],
    count: int,
    batch: int,
    beginnings: np.ndarray | None,
    watcher: Any,
) -> list[list[list[int]]]:
    """Search as `generate` says, for so many answers to each; a draw is which prompt of a call, and which time."""
    base: Any = base_model(model)
    context = require_room(base, prompts)
    allowed = allowed_ids(base, vocabulary, target)
    found: list[list[list[int]]] = [[] for _ in prompts]
    with generating(base):
        for chosen in batches([len(prompt) for prompt in prompts], batch, context - options.max_pieces):
            room = min(options.max_pieces, context - len(prompts[chosen[-1]]))
            ids, mask = left_padded([prompts[index] for index in chosen], vocabulary.pad_id, base.device)
            processors: list[LogitsProcessor] = [_Held(allowed)]
            if beginnings is not None:
                others = np.flatnonzero(vocabulary.allowed(target) & ~beginnings)
                processors.append(SuppressTokensAtBeginLogitsProcessor(others, ids.shape[1], str(base.device)))
            if options.method == "sample":
                processors += _sampling(options, [draws[index] for index in chosen])
            made = base.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=_generation_config(options, vocabulary, room, count),
                logits_processor=LogitsProcessorList(processors),
                **({"streamer": watcher, "stopping_criteria": StoppingCriteriaList([watcher])} if watcher else {}),
            )
            for place, row in enumerate(made[:, ids.shape[1] :].tolist()):
                ended = row[: row.index(vocabulary.end_id)] if vocabulary.end_id in row else row
                found[chosen[place // count]].append(ended)
    return found


def require_room(model: Any, prompts: Sequence[Sequence[int]]) -> int:
    """Return how many positions a model has.

    Raises:
        UserError: a prompt is empty or leaves no position to generate at.
    """
    context = int(model.config.max_position_embeddings)
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {index}: is empty")
        if len(prompt) >= context:
            raise UserError(f"prompt {index}: has {len(prompt)} pieces, but the model has only {context} positions")
    return context


def allowed_ids(model: Any, vocabulary: Vocabulary, target: Modality) -> Tensor:
    """Say which of a model's outputs may come next, bool [outputs]."""
    # An output layer may be wider than the vocabulary (some are padded to a multiple of 64).
    width = model.get_output_embeddings().weight.shape[0]
    allowed = torch.zeros(width, dtype=torch.bool, device=model.device)
    allowed[: vocabulary.size] = torch.from_numpy(vocabulary.allowed(target))
    return allowed


def batches(lengths: Sequence[int], size: int, unclipped: int) -> Iterator[list[int]]:
    """Cut the order by length into batches.

    Where the model's positions may end before ``max_pieces`` (prompts longer than ``unclipped``), all of a batch must
    be of one length, or one prompt would shorten what is generated for another.
    """
    chosen: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if chosen and (len(chosen) == size or unclipped < lengths[index] != lengths[chosen[0]]):
            yield chosen
            chosen = []
        chosen.append(index)
    if chosen:
        yield chosen


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad on the left: ids and attention mask, int64 [prompts, longest]."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _sampling(options: GenerationOptions, draws: Sequence[tuple[int, int]]) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(float(options.temperature))]
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(TopPLogitsWarper(float(options.top_p)))
    return [*processors, _Noise(options.seed, draws)]


def _generation_config(options: GenerationOptions, vocabulary: Vocabulary, room: int, count: int) -> GenerationConfig:
    shape: dict[str, Any] = {}
    if options.method == "beam":
        # transformers' usual rule for when to stop is exact only where longer beams cannot score higher.
        patience = "never" if options.length_penalty > 0 else False
        shape = {"num_beams": options.beams, "length_penalty": options.length_penalty, "early_stopping": patience}
    return GenerationConfig(
        do_sample=False,
        num_return_sequences=count,
        max_new_tokens=room,
        min_new_tokens=min(options.min_pieces, room),
        eos_token_id=vocabulary.end_id,
        pad_token_id=vocabulary.pad_id,
        **shape,
    )
