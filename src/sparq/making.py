"""The parts of a run, each made into a folder: what a recipe's stages and the commands have in common."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from sparq.adaptation.ends import START
from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.training import HISTORY, Measure, Report, Training, adapt
from sparq.artifacts import fingerprint, named_folder, read_manifest, require_match
from sparq.assets import ready_made
from sparq.attention import install
from sparq.config import AdaptationConfig, AttentionConfig, VocabularyConfig, VocoderTrainingConfig
from sparq.corpus.corpus import Corpus
from sparq.corpus.utterance import Utterance
from sparq.device import usual_device
from sparq.errors import UserError
from sparq.evaluation.scoring import live_measure, task_examples
from sparq.language.folder import no_progress_bars
from sparq.language.likelihood import padded_batches
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS
from sparq.language.vocabulary import ExtendedVocabulary, JointVocabulary, Vocabulary
from sparq.language.writing import Writer
from sparq.quantization import BlockReport, QuantizationConfig, quantize
from sparq.quantization.blocks import architecture
from sparq.speech.encoder import load_encoder
from sparq.speech.speaker import load_speaker_encoder
from sparq.speech.vocoder import Vocoder, VocoderConfig
from sparq.speech.vocoder_training import VocoderTraining, train_vocoder
from sparq.stages import Stage, StageEvent, run_stage

SPEECHLM, TRAINING, LEARNT = "speechlm", "training", "learnt"
_VOCABULARY_LINES = 20_000


@dataclasses.dataclass(frozen=True)
class Watcher:
    """Who is told how a run goes.

    Attributes:
        stage: of every stage that is skipped, begun and finished.
        training: of every training step (step, share of the training that is done, what was logged last).
        note: of what is being done inside a stage.
    """

    stage: Callable[[StageEvent], None] = lambda _: None
    training: Report = lambda *_: None
    note: Callable[[str], None] = lambda _: None


def learn_vocabulary(corpus: Corpus, config: VocabularyConfig, tokenizer: Any = None, seed: int = 0) -> Vocabulary:
    """Learn the pieces of a corpus from what it holds to train on.

    They are learnt from speech with its text (VoxtLM), or, where a corpus has none, from each alone.

    Args:
        corpus: see above.
        config: mode, size, and how text and units are written.
        tokenizer: of the pretrained model whose tokens mode "extend" keeps.
        seed: of the choice among many lines.
    """
    units = corpus.codebook.size
    options: dict[str, Any] = {"deduplicate": config.deduplicate, "normalisation": config.normalisation}
    writer = Writer(units, **options)
    utterances = corpus.utterances("train")
    pairs = [(TASKS["asr"], u) for u in utterances if u.serves(TASKS["asr"]) or u.serves(TASKS["tts"])]
    alone = [(task, u) for task in (TASKS["textlm"], TASKS["speechlm"]) for u in utterances if u.serves(task)]
    said = [(task, u) for task, u in pairs or alone if not u.text or writer.write_text(u.text)]
    chosen = np.random.default_rng(seed).permutation(len(said))[:_VOCABULARY_LINES]
    lines = [task.line(writer, text=u.text, units=u.units) for task, u in (said[i] for i in chosen)]
    if config.mode == "joint":
        return JointVocabulary.train(lines, config.size, units, **options)
    return ExtendedVocabulary.train(lines, config.size, units, tokenizer, **options)


def example_stream(
    model: PreTrainedModel,
    corpus: Corpus,
    vocabulary: Vocabulary,
    config: AdaptationConfig,
    rehearsed: Sequence[Utterance] = (),
) -> ExampleStream:
    """Draw batches from what a corpus holds to train on, none of them longer than the model's positions.

    Args:
        model: that will read them.
        corpus: what it learns from.
        vocabulary: how that is written.
        config: task weights, size and seed.
        rehearsed: further utterances, such as text alone (then without units).
    """
    return ExampleStream(
        [*corpus.utterances("train"), *rehearsed],
        vocabulary,
        config.task_weights,
        config.batch_bins,
        config.seed,
        config.curriculum,
        model.config.max_position_embeddings,
        config.unit_noise,
    )


def adapt_model(
    model: PreTrainedModel,
    corpus: Corpus,
    vocabulary: Vocabulary,
    config: AdaptationConfig,
    folder: Path,
    report: Report,
    *,
    rehearsed: Sequence[Utterance] = (),
    measure: Measure | None = None,
    before: PreTrainedModel | None = None,
) -> Training:
    """Adapt a model, its attention installed, to a corpus; live measures are taken on what the corpus held out.

    Args:
        model: with the vocabulary's embeddings.
        corpus: what it learns from.
        vocabulary: how that is written.
        config: how it learns.
        folder: for the log and checkpoints, see `forget_checkpoints`.
        report: told of every step.
        rehearsed: what it shall not forget, drawn from as from the corpus.
        measure: taken live; None for everything that is known of the held-out part.
        before: the text model that it was, for ``text_targets: model``.
    """
    stream = example_stream(model, corpus, vocabulary, config, rehearsed)
    held_out = corpus.utterances("held_out")
    if measure is None and held_out:
        measure = live_measure(vocabulary, held_out)
    with no_progress_bars():  # of checkpoints, across the one that shows the training
        return adapt(model, stream, config, folder, measure=measure, report=report, before=before)


def forget_checkpoints(folder: Path) -> None:
    """Remove what only a training that was stopped goes on from, once what it gave is saved."""
    for checkpoint in [*folder.glob("checkpoint-*"), *folder.glob(START)]:
        shutil.rmtree(checkpoint)


def adapt_speechlm(
    model: Path,
    corpus: Corpus,
    sink: str | None,
    config: AdaptationConfig,
    output: Path,
    watcher: Watcher,
    *,
    overwrite: bool = False,
) -> list[dict[str, float]]:
    """Adapt a SpeechLM further, as a stage of its own: skipped when it is complete, gone on with when it was killed.

    Args:
        model: folder of the SpeechLM.
        corpus: what it learns from.
        sink: attention to train with; None keeps the model's own.
        config: how it learns.
        output: folder of the result, which is in its folder ``speechlm``.
        watcher: told how it goes.
        overwrite: replace an output that was made with other settings or inputs.

    Returns:
        What was logged as it trained.

    Raises:
        UserError: the corpus has units of another codebook, or the output is a folder that no run made, or one that is
            not to be replaced.
    """

    def train(work: Path) -> SpeechLM:
        lm = SpeechLM.load(model)
        architecture(lm.model)  # refuses a deployed model
        require_match("the model (its codebook)", lm.codebook.meaning, corpus.codebook.meaning)
        if sink is not None:
            install(lm.model, **AttentionConfig().arguments(sink))
        trained = adapt_model(lm.model, corpus, lm.vocabulary, config, work / TRAINING, watcher.training)
        return lm.with_model(trained.model, corpus.codebook)

    def build(work: Path) -> None:
        train(work).save(work / SPEECHLM)
        forget_checkpoints(work / TRAINING)

    output = named_folder(output)
    inputs = {"model": read_manifest(model, "speechlm").fingerprint, "corpus": corpus.fingerprint}
    stage = Stage(output.name, {"sink": sink, "adaptation": config}, inputs, build, join=train)
    run_stage(output.parent, stage, watcher.stage, overwrite=overwrite)
    return list(json.loads((output / TRAINING / HISTORY).read_text(encoding="utf-8")))


def quantize_speechlm(
    model: Path,
    corpus: Corpus,
    config: QuantizationConfig,
    output: Path,
    watcher: Watcher | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Quantise a SpeechLM (simulated) into a folder of its own, calibrated on a corpus.

    A method that learns goes on with what it had finished when it was killed.

    Raises:
        UserError: the corpus has units of another codebook, or the output is a folder that no run made, or one that was
            made with other settings or inputs and is not to be replaced (``overwrite``).
    """
    output = named_folder(output)
    inputs = {"model": read_manifest(model, "speechlm").fingerprint, "corpus": corpus.fingerprint}
    build = partial(quantize_into, model, corpus, config, watcher=watcher)
    run_stage(output.parent, Stage(output.name, dataclasses.asdict(config), inputs, build), overwrite=overwrite)


def quantize_into(
    model: Path, corpus: Corpus, config: QuantizationConfig, folder: Path, watcher: Watcher | None = None
) -> None:
    """Load a SpeechLM, quantise it (simulated), calibrated on a corpus, and save it.

    Args:
        model: folder of the SpeechLM.
        corpus: what it is calibrated on.
        config: method and widths.
        folder: of the result; finished blocks of a method that learns are in it until then.
        watcher: told of every block that was learnt.

    Raises:
        UserError: the corpus has units of another codebook.
    """
    lm = SpeechLM.load(model, str(usual_device()))
    require_match("the model (its codebook)", lm.codebook.meaning, corpus.codebook.meaning)
    note = (watcher or Watcher()).note

    def report(block: BlockReport) -> None:
        note(f"block {block.block} of {block.blocks}: error {block.before:.3g}, learnt {block.after:.3g}")

    batches = calibration_batches(corpus, lm.vocabulary, config.calibration_sequences)
    quantize(lm.model, config, batches, folder=folder / LEARNT, report=report)
    lm.save(folder)  # in place of the whole folder


def vocoder_folder(config: VocoderTrainingConfig, corpus: Corpus, output: Path, *, overwrite: bool = False) -> None:
    """Train a vocoder into a folder of its own, skipped when it is complete, gone on with when it was killed.

    Raises:
        UserError: the corpus kept no audio, or the output is a folder that no run made, or one that was made with other
            settings or inputs and is not to be replaced (``overwrite``).
    """
    output = named_folder(output)
    inputs = {"corpus": corpus.fingerprint, **vocoder_start(config)}
    build = partial(make_vocoder, config, corpus)
    run_stage(output.parent, Stage(output.name, dataclasses.asdict(config), inputs, build), overwrite=overwrite)


def vocoder_start(config: VocoderTrainingConfig) -> dict[str, str]:
    """Name the vocoder that a training starts from as the input of a stage; nothing if it begins anew.

    Raises:
        UserError: there is no such vocoder.
    """
    if config.start is None:
        return {}
    return {"start": known(_ready_vocoder(config.start), "vocoder")["ready"]}


def _ready_vocoder(name: str) -> Path:
    folder = ready_made(name)
    assert folder is not None
    return folder


def make_vocoder(config: VocoderTrainingConfig, corpus: Corpus, folder: Path) -> None:
    """Train a vocoder on the recordings that a corpus kept, and write it into ``folder``.

    Raises:
        UserError: the corpus kept no audio, or its units are further apart than the frames of the preset, or nearer.
    """
    shape, book = VocoderConfig.preset(config.preset, units=corpus.codebook.size), corpus.codebook
    hop = load_encoder(book.encoder_name, book.layers).hop
    if shape.hop != hop:
        raise UserError(
            f"vocoder.preset: {config.preset} has frames of {shape.hop} samples, but {book.encoder_name} units of {hop}"
        )
    given = {name: getattr(config, name) for name in ("batch", "warmup_steps", "balance", "seed")}
    training = VocoderTraining.preset(config.preset, config.steps)
    encoder = None if config.speaker_encoder is None else load_speaker_encoder(config.speaker_encoder)
    speaker_dim = 0 if encoder is None else encoder.dimension
    vocoder = train_vocoder(
        corpus.recordings(),
        folder / TRAINING,
        corpus.codebook.meaning,
        dataclasses.replace(shape, speaker_dim=speaker_dim),
        dataclasses.replace(training, **{name: value for name, value in given.items() if value is not None}),
        encoder=encoder,
        start=None if config.start is None else Vocoder.load(_ready_vocoder(config.start)),
    )
    vocoder.save(folder)


def calibration_batches(
    corpus: Corpus, vocabulary: Vocabulary, sequences: int, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Draw calibration sequences, the four tasks in turn, from what a corpus holds to train on and serves them."""
    utterances = corpus.utterances("train")
    order = np.random.default_rng(seed).permutation(len(utterances))
    each = max(1, -(-sequences // len(TASKS)))
    examples = []
    for name, task in TASKS.items():
        chosen = list(itertools.islice((utterances[i] for i in order if utterances[i].serves(task)), each))
        examples += task_examples(vocabulary, chosen, name) if chosen else []
    return list(padded_batches(examples[:sequences]))


def known(folder: Path, kind: str) -> dict[str, str]:
    """Name a ready-made part as the input of a stage."""
    manifest = read_manifest(folder, kind)
    return {"ready": fingerprint([manifest.fingerprint, dict(manifest.inputs)])}
