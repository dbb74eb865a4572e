"""What a fine-tuning is judged by, the same before and after: words misheard, and how well text is still predicted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from sparq.corpus.utterance import Utterance
from sparq.errors import UserError
from sparq.evaluation.recognition import word_error_rate
from sparq.evaluation.scoring import task_losses
from sparq.language.generation import beam_search
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS, example

FORGETTING = 0.05  # growth of the text perplexity that is worth a warning


@dataclasses.dataclass(frozen=True)
class Scores:
    """Measured on utterances that were held out.

    Attributes:
        wer: word error rate in percent of the transcripts, found with a beam and weighed again.
        words: in the references.
        asr_loss: nats a piece of the right transcripts.
        transcript_perplexity: of the transcripts as text.
        text_perplexity: of general text; None where there is none.
    """

    wer: float
    words: int
    asr_loss: float
    transcript_perplexity: float
    text_perplexity: float | None


def fitting(lm: SpeechLM, utterances: Sequence[Utterance]) -> list[Utterance]:
    """Give the utterances that can be written and are, with their text, no longer than the model's positions."""
    positions = lm.model.config.max_position_embeddings
    return [
        one
        for one in utterances
        if len(one.units)
        and lm.vocabulary.write_text(one.text)
        and len(example(TASKS["asr"], lm.vocabulary, text=one.text, units=one.units).input_ids) <= positions
    ]


def score(
    lm: SpeechLM,
    utterances: Sequence[Utterance],
    general: Sequence[Utterance],
    beam: int,
    note: Callable[[str], None] = lambda _: None,
) -> Scores:
    """Measure a model.

    Args:
        lm: the model.
        utterances: held out, each fitting into the model's positions.
        general: texts of others, or none; those longer than the model's positions are passed over.
        beam: width of the beam search as it listens.
        note: told what is done next.

    Raises:
        UserError: there is not one utterance.
    """
    if not utterances:
        raise UserError("fine-tuning: not one recording is held out to measure on")
    note("perplexity")
    losses = task_losses(lm.model, lm.vocabulary, utterances, ("asr", "textlm"))
    general_loss = task_losses(lm.model, lm.vocabulary, general, ("textlm",)).get("held_out/textlm/loss")
    note(f"listening to {len(utterances)} held-out recordings (beam {beam})")
    views = [one.views for one in utterances]
    heard = lm.write_down([one.units for one in utterances], beam_search(beam), views=views)
    errors = word_error_rate([one.text for one in utterances], heard)
    return Scores(
        wer=errors.wer,
        words=errors.words,
        asr_loss=losses["held_out/asr/loss"],
        transcript_perplexity=math.exp(losses["held_out/textlm/loss"]),
        text_perplexity=None if general_loss is None else math.exp(general_loss),
    )


def warnings(before: Scores, after: Scores) -> list[str]:
    """Say what grew worse."""
    told = []
    if after.wer >= before.wer and after.wer > 0:  # from 0 it cannot fall
        told.append(f"word error rate did not fall ({before.wer:.1f} % before, {after.wer:.1f} % after)")
    if before.text_perplexity is not None and after.text_perplexity is not None:
        growth = after.text_perplexity / before.text_perplexity - 1
        if growth > FORGETTING:
            told.append(
                f"text perplexity grew by {100 * growth:.0f} %: the model forgot some of its text (more of "
                "task_weights.textlm, or a smaller learning_rate, keeps more)"
            )
    return told
