"""Perplexity and next-token accuracy; speech and text are the same measure on different examples.

Paper, section 4.1: perplexity of text on textLM examples, of speech on speechLM examples. Next-token accuracy is the
ablations' measure (section 4.3). Both count the target alone: what the tasks mask out of the loss is not scored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.language.likelihood import PADDED_TOKENS, padded_batches
from sparq.language.tasks import IGNORED, Example
from sparq.quantization.calibration import Batch, evaluating, model_inputs


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How well a model predicts the targets of some examples.

    Attributes:
        perplexity: exp of the mean negative log-likelihood over all target tokens, end tokens included.
        next_token_accuracy: how often the likeliest token is the right one, in percent.
        tokens: target tokens scored.
        examples: examples scored.
    """

    perplexity: float
    next_token_accuracy: float
    tokens: int
    examples: int


def batch_likelihood(model: PreTrainedModel, batch: Batch) -> tuple[float, int, int]:
    """Sum of the negative log-likelihoods (nats), right predictions and target tokens of one padded batch.

    Args:
        model: a causal language model; its mode and gradients are the caller's.
        batch: "input_ids", "attention_mask", "labels", each [batch, length], padded on either side.
    """
    inputs = model_inputs(model, batch)
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    labels = batch["labels"].to(logits.device)[:, 1:]
    # A target needs a real token before it: with padding on the left, the first token has none.
    scored = (labels != IGNORED) & (inputs["attention_mask"][:, :-1] * inputs["attention_mask"][:, 1:]).bool()
    predicted, wanted = logits[scored].float(), labels[scored]
    losses = cross_entropy(predicted, wanted, reduction="none").double()
    return float(losses.sum()), int((predicted.argmax(-1) == wanted).sum()), int(scored.sum())


def perplexity(
    model: PreTrainedModel, examples: Iterable[Example], *, padded_tokens: int = PADDED_TOKENS
) -> Likelihood:
    """Perplexity and next-token accuracy, each token weighing the same.

    Args:
        model: a causal language model; it runs in evaluation mode, on its own device.
        examples: what is scored (`sparq.language.tasks.example` makes them).
        padded_tokens: see `padded_batches`.

    Raises:
        UserError: there is no example or no target token, or an example is longer than the model's context.
    """
    examples = list(examples)
    if not examples:
        raise UserError("perplexity: the set has no examples")
    longest, context = max(len(one.input_ids) for one in examples), model.config.max_position_embeddings
    if longest > context:
        raise UserError(f"perplexity: an example has {longest} tokens, the model reads at most {context}")
    loss, right, tokens = 0.0, 0, 0
    with evaluating(model):
        for batch in padded_batches(examples, padded_tokens):
            batch_loss, batch_right, batch_tokens = batch_likelihood(model, batch)
            loss, right, tokens = loss + batch_loss, right + batch_right, tokens + batch_tokens
    if not tokens:
        raise UserError(f"perplexity: none of the {len(examples)} examples has a target")
    return Likelihood(_exp(loss / tokens), 100 * right / tokens, tokens, len(examples))


def _exp(mean: float) -> float:
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf
