"""The paper's four scores of a speech language model, and its outliers, on utterances that it never saw.

Text perplexity on textLM, speech perplexity on speechLM, the word error rate of its transcripts (ASR), and the word
error rate of a recogniser on what it says (TTS, vocoder included): Tables 1, 2 and 6. Outliers as in Figure 3: on text
(textLM), on speech (speechLM), and on speech with its text (ASR).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from transformers import PreTrainedModel

from sparq.config import EvaluationConfig
from sparq.corpus.utterance import Utterance
from sparq.deployment.config import RECORD
from sparq.errors import UserError
from sparq.evaluation.degradation import Scores
from sparq.evaluation.outliers import OutlierReport, outliers
from sparq.evaluation.perplexity import perplexity
from sparq.evaluation.recognition import WordErrors, word_error_rate
from sparq.evaluation.sinks import SinkReport, sinks
from sparq.language.generation import GenerationOptions, beam_search
from sparq.language.likelihood import padded_batches
from sparq.language.speech_lm import SPEAKING, SpeechLM
from sparq.language.tasks import TASKS, Example, example
from sparq.language.vocabulary import Vocabulary
from sparq.speech.recogniser import Recogniser

MODALITIES = {"text": "textlm", "speech": "speechlm", "speech with text": "asr"}
"""Kind of input in Figure 3 → the task whose sequences it is measured on."""

LIVE = 32  # utterances measured while a model trains
LIVE_OUTLIERS = ("maximum_infinity_norm", "average_kurtosis")
LIVE_SINKS = ("first_token_attention", "massive_activation_ratio")


@dataclasses.dataclass(frozen=True)
class Assessment:
    """Everything that is measured of a model.

    Attributes:
        scores: the paper's four; None where there was nothing to measure on.
        accuracy: next-token accuracy in percent for each task that was measured.
        asr, tts: the word errors behind the rates.
        outliers: kind of input → outliers on it; nothing of a deployed model.
        transcripts: what it wrote down of each utterance.
        heard: what the judge heard of each sentence that it spoke.
    """

    scores: Scores
    accuracy: Mapping[str, float]
    asr: WordErrors | None
    tts: WordErrors | None
    outliers: Mapping[str, OutlierReport]
    transcripts: Sequence[str]
    heard: Sequence[str]


def task_examples(vocabulary: Vocabulary, utterances: Sequence[Utterance], task: str) -> list[Example]:
    """Write utterances as examples of a task, leaving out those that lack what it needs or are not meant for it.

    Raises:
        UserError: nothing is left.
    """
    made = _task_examples(vocabulary, utterances, task)
    if not made:
        raise UserError(f"evaluation: there is not one utterance for task {task}")
    return made


def _task_examples(vocabulary: Vocabulary, utterances: Sequence[Utterance], task: str) -> list[Example]:
    chosen = _serving(vocabulary, utterances, task)
    return [_example(vocabulary, one, task) for one in chosen]


def _example(vocabulary: Vocabulary, utterance: Utterance, task: str) -> Example:
    return example(TASKS[task], vocabulary, text=utterance.text, units=utterance.units)


def _serving(vocabulary: Vocabulary, utterances: Sequence[Utterance], task: str) -> list[Utterance]:
    """Choose what serves a task and, where it has text, has some that can be written."""
    return [u for u in utterances if u.serves(TASKS[task]) and (not u.text or vocabulary.write_text(u.text))]


def _fitting(
    model: PreTrainedModel, vocabulary: Vocabulary, utterances: Sequence[Utterance], task: str
) -> Iterator[tuple[Utterance, Example]]:
    """Give what serves a task, and its example, where that is no longer than the model's positions."""
    for one in _serving(vocabulary, utterances, task):
        written = _example(vocabulary, one, task)
        if len(written.input_ids) <= model.config.max_position_embeddings:
            yield one, written


def assess(
    lm: SpeechLM,
    utterances: Sequence[Utterance],
    judge: Recogniser,
    config: EvaluationConfig,
    progress: Callable[[str], None] = lambda _: None,
) -> Assessment:
    """Measure a model.

    Args:
        lm: the model, with a vocoder.
        utterances: held out from its training; the first ``config.sentences`` that serve a task, and fit into the
            model's positions, are used for it, and a task that none serves (for want of text or of speech) has no
            score.
        judge: recogniser that hears what the model says.
        config: how many sentences, and how the model searches.
        progress: told what is done next.

    Raises:
        UserError: there are no utterances, or the model cannot speak.
    """
    fitting = {task: _fitting(lm.model, lm.vocabulary, utterances, task) for task in TASKS}
    taken = {task: list(itertools.islice(some, config.sentences)) for task, some in fitting.items()}
    chosen = {task: [one for one, _ in some] for task, some in taken.items()}
    examples = {task: [written for _, written in some] for task, some in taken.items() if some}
    if not examples:
        raise UserError("evaluation: there is not one held-out utterance")
    chosen_from = dataclasses.replace(SPEAKING, draws=config.draws) if config.draws > 1 else GenerationOptions()
    listening, speaking = (
        dataclasses.replace(options, max_pieces=config.max_pieces)
        for options in (beam_search(config.beam), chosen_from)
    )
    progress("perplexity")
    likelihoods = {task: perplexity(lm.model, made) for task, made in examples.items()}
    progress("outliers")
    # Of a deployed model, which may be a graph, only the logits are seen.
    deployed = getattr(lm.model.config, RECORD, None) is not None
    seen = {} if deployed else MODALITIES
    report = {kind: outliers(lm.model, padded_batches(examples[t])) for kind, t in seen.items() if t in examples}
    progress("listening")
    views = [u.views for u in chosen["asr"]]
    transcripts = lm.write_down([u.units for u in chosen["asr"]], listening, views=views) if chosen["asr"] else []
    progress("speaking")
    texts = [u.text for u in chosen["tts"]]
    heard = judge.transcribe([wave for wave, _ in lm.speak(texts, speaking)]) if texts else []
    asr_errors = word_error_rate([u.text for u in chosen["asr"]], transcripts) if transcripts else None
    tts_errors = word_error_rate(texts, heard) if texts else None
    text, speech = (likelihoods[task].perplexity if task in likelihoods else None for task in ("textlm", "speechlm"))
    scores = Scores(
        text_perplexity=text,
        speech_perplexity=speech,
        asr_wer=None if asr_errors is None else asr_errors.wer,
        tts_wer=None if tts_errors is None else tts_errors.wer,
    )
    accuracy = {task: likelihood.next_token_accuracy for task, likelihood in likelihoods.items()}
    return Assessment(scores, accuracy, asr_errors, tts_errors, report, transcripts, heard)


def outliers_by_modality(
    model: PreTrainedModel, vocabulary: Vocabulary, utterances: Sequence[Utterance]
) -> dict[str, OutlierReport]:
    """Measure outliers on text, on speech, and on speech with its text (Figure 3)."""
    return {kind: outliers(model, padded_batches(made)) for kind, made in modalities(vocabulary, utterances).items()}


def sinks_by_modality(
    model: PreTrainedModel, vocabulary: Vocabulary, utterances: Sequence[Utterance]
) -> dict[str, SinkReport]:
    """Measure attention sinks and massive activations on text, on speech, and on speech with its text."""
    return {kind: sinks(model, padded_batches(made)) for kind, made in modalities(vocabulary, utterances).items()}


def modalities(vocabulary: Vocabulary, utterances: Sequence[Utterance]) -> dict[str, list[Example]]:
    """Write utterances as text, as speech, and as speech with its text, without kinds that there are none of.

    Raises:
        UserError: there is none of any kind.
    """
    made = {kind: _task_examples(vocabulary, utterances, task) for kind, task in MODALITIES.items()}
    found = {kind: examples for kind, examples in made.items() if examples}
    if not found:
        raise UserError("evaluation: there is not one held-out utterance")
    return found


def live_measure(
    vocabulary: Vocabulary, utterances: Sequence[Utterance]
) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Make the measure that is taken as a model trains: next-token accuracy and loss of each task, outliers and sinks.

    Examples that are longer than the model's positions are left out, and so is a task without any example.
    """
    served = {task: _serving(vocabulary, utterances, task)[:LIVE] for task in TASKS}

    def measure(model: PreTrainedModel) -> dict[str, float]:
        values: dict[str, float] = {}
        for task, few in served.items():
            values |= task_losses(model, vocabulary, few, (task,))
        for kind, task in MODALITIES.items():
            if examples := _examples_that_fit(model, vocabulary, served[task], task):
                outside, inside = outliers(model, padded_batches(examples)), sinks(model, padded_batches(examples))
                values |= {f"outliers/{kind}/{name}": getattr(outside, name) for name in LIVE_OUTLIERS}
                values |= {f"outliers/{kind}/{name}": getattr(inside, name) for name in LIVE_SINKS}
        return values

    return measure


def task_losses(
    model: PreTrainedModel, vocabulary: Vocabulary, utterances: Sequence[Utterance], tasks: Iterable[str] = TASKS
) -> dict[str, float]:
    """Measure next-token accuracy (percent) and loss (nats a piece) of tasks, each named by its task.

    Examples that are longer than the model's positions are left out, and so is a task without any example.
    """
    values: dict[str, float] = {}
    for task in tasks:
        if examples := _examples_that_fit(model, vocabulary, utterances, task):
            likelihood = perplexity(model, examples)
            values[f"held_out/{task}/accuracy"] = likelihood.next_token_accuracy
            values[f"held_out/{task}/loss"] = math.log(likelihood.perplexity)
    return values


def _examples_that_fit(
    model: PreTrainedModel, vocabulary: Vocabulary, utterances: Sequence[Utterance], task: str
) -> list[Example]:
    return [written for _, written in _fitting(model, vocabulary, utterances, task)]
