"""A recipe becomes stages: corpus → vocabulary → vocoder → each attention variant adapted, quantised, scored → report.

Every stage is a folder of the run, skipped when it is complete and gone on with when it was killed (see
:mod:`sparq.stages`)::

    runs/NAME/corpus               units of everything that is said, and the codebook
    runs/NAME/vocabulary           the pieces
    runs/NAME/vocoder              speaks units
    runs/NAME/max/speechlm         the model adapted with the sink "max"; sparq.load() reads it
    runs/NAME/max-W4A4/speechlm    the same, quantised (simulated)
    runs/NAME/scores-max-W4A4      what was measured of it
    runs/NAME/report.html
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.start import new_model, pretrained_model
from sparq.adaptation.training import Report, Training, adapt
from sparq.artifacts import MANIFEST, Manifest, fingerprint, read_manifest, require_match, write_text
from sparq.assets import embedded, embedded_names, shipped
from sparq.attention import install
from sparq.config import AdaptationConfig, QuantizationRow, VocoderTrainingConfig
from sparq.corpus.build import corpus_stage
from sparq.corpus.corpus import Corpus
from sparq.errors import UserError
from sparq.evaluation.perplexity import padded_batches
from sparq.evaluation.scoring import assess, live_measure, task_examples
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS
from sparq.language.vocabulary import ExtendedVocabulary, JointVocabulary, Vocabulary, Writer, load_vocabulary
from sparq.quantization import QuantizationConfig, quantize
from sparq.recipe import Recipe
from sparq.speech.recogniser import Recogniser, load_recogniser
from sparq.speech.vocoder import Vocoder, VocoderConfig
from sparq.speech.vocoder_training import VocoderTraining, train_vocoder
from sparq.stages import Stage, StageEvent, run_stage

SPEECHLM = "speechlm"
FULL = "W16A16"
VOCABULARY_LINES = 20_000
RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Watcher:
    """Who is told how a run goes.

    Attributes:
        stage: of every stage that is skipped, begun and finished.
        training: of every training step (step, last step, what was logged last).
        note: of what is being done inside a stage.
    """

    stage: Callable[[StageEvent], None] = lambda _: None
    training: Report = lambda *_: None
    note: Callable[[str], None] = lambda _: None


class Run:
    """A recipe at work in its folder."""

    def __init__(self, recipe: Recipe, watcher: Watcher | None = None, *, quiet: bool = True) -> None:
        """Prepare; nothing is made yet. ``quiet`` keeps the corpus from drawing its own progress bar."""
        self.recipe = recipe
        self.folder = recipe.folder
        self.watcher = watcher or Watcher()
        self._quiet = quiet

    def _run(self, stage: Stage) -> Manifest:
        return run_stage(self.folder, stage, self.watcher.stage)

    @cached_property
    def corpus_manifest(self) -> Manifest:
        """The corpus, made if need be."""
        return self._run(corpus_stage(self.recipe.corpus, quiet=self._quiet))

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus of the run."""
        assert self.corpus_manifest
        return Corpus.load(self.folder / "corpus")

    @cached_property
    def vocabulary_manifest(self) -> Manifest:
        """The vocabulary, made or copied if need be."""
        config = self.recipe.vocabulary
        ready = None if config.name is None else ready_made(config.name)
        inputs = {"corpus": self.corpus_manifest.fingerprint} if ready is None else _known(ready, "vocabulary")
        return self._run(Stage("vocabulary", dataclasses.asdict(config), inputs, partial(self._vocabulary, ready)))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the run."""
        assert self.vocabulary_manifest
        return load_vocabulary(self.folder / "vocabulary")

    def _vocabulary(self, ready: Path | None, work: Path) -> None:
        if ready is not None:
            shutil.copytree(ready, work, dirs_exist_ok=True)
            return
        config, units = self.recipe.vocabulary, self.corpus.codebook.size
        options: dict[str, Any] = {"deduplicate": config.deduplicate, "normalisation": config.normalisation}
        writer = Writer(units, **options)
        random = np.random.default_rng(self.recipe.adaptation.seed)
        said = [u for u in self.corpus.utterances("train") if len(u.units) and writer.write_text(u.text)]
        chosen = random.permutation(len(said))[:VOCABULARY_LINES]
        lines = [TASKS["asr"].line(writer, text=said[i].text, units=said[i].units) for i in chosen]
        if config.mode == "joint":
            JointVocabulary.train(lines, config.size, units, **options).save(work)
            return
        name = self.recipe.model.name
        if name is None:
            raise UserError("vocabulary.mode: extend needs model.name (the pretrained model whose tokenizer is kept)")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(language_model(name))
        ExtendedVocabulary.train(lines, config.size, units, tokenizer, **options).save(work)

    @cached_property
    def vocoder_manifest(self) -> Manifest:
        """The vocoder, trained or copied if need be."""
        config = self.recipe.vocoder
        ready = None if config.name is None else ready_made(config.name)
        inputs = {"corpus": self.corpus_manifest.fingerprint} if ready is None else _known(ready, "vocoder")
        return self._run(Stage("vocoder", dataclasses.asdict(config), inputs, partial(self._vocoder, ready)))

    def _vocoder(self, ready: Path | None, work: Path) -> None:
        if ready is not None:
            shutil.copytree(ready, work, dirs_exist_ok=True)
            return
        make_vocoder(self.recipe.vocoder, self.corpus, work)

    def _speechlm(self, model: object) -> SpeechLM:
        vocoder = Vocoder.load(self.folder / "vocoder")
        return SpeechLM(model, self.vocabulary, self.corpus.codebook, vocoder)

    def adapted(self, sink: str) -> Manifest:
        """One attention variant, adapted if need be."""
        recipe = self.recipe
        name = recipe.model.weights(sink)
        settings = {
            "model": recipe.model,
            "sink": sink,
            "implementation": recipe.attention.implementation,
            "detach": recipe.attention.detach and sink in {"max", "mean"},
            "adaptation": recipe.adaptation,
        }
        inputs = {
            "corpus": self.corpus_manifest.fingerprint,
            "vocabulary": self.vocabulary_manifest.fingerprint,
            "vocoder": self.vocoder_manifest.fingerprint,
        }
        start = None if name is None else ready_made(name, must_exist=False)
        if start is not None:
            inputs |= _known(start, "speechlm")
        return self._run(Stage(sink, settings, inputs, partial(self._adapt, sink, name, start)))

    def _adapt(self, sink: str, name: str | None, start: Path | None, work: Path) -> None:
        recipe, vocabulary = self.recipe, self.vocabulary
        if start is not None:
            model = SpeechLM.load(start).model
        elif name is not None:
            model = pretrained_model(language_model(name), vocabulary, recipe.adaptation.seed)
        else:
            model = new_model(recipe.model, vocabulary, recipe.adaptation.seed)
        detach = recipe.attention.detach and sink in {"max", "mean"}
        install(model, sink, recipe.attention.implementation, detach=detach)
        training = adapt_model(
            model, self.corpus, vocabulary, recipe.adaptation, work / "training", self.watcher.training
        )
        self._speechlm(training.model).save(work / SPEECHLM)

    def quantized(self, sink: str, row: QuantizationRow) -> Manifest:
        """One variant at one width, quantised if need be (simulated)."""
        inputs = {"model": self.adapted(sink).fingerprint}
        config = QuantizationConfig(**dataclasses.asdict(row))
        return self._run(
            Stage(f"{sink}-{config.bits}", dataclasses.asdict(row), inputs, partial(self._quantize, sink, config))
        )

    def _quantize(self, sink: str, config: QuantizationConfig, work: Path) -> None:
        lm = SpeechLM.load(self.folder / sink / SPEECHLM)
        quantize(lm.model, config, calibration_batches(self.corpus, lm.vocabulary, config.calibration_sequences))
        lm.save(work / SPEECHLM)

    def scored(self, sink: str, row: QuantizationRow | None) -> Manifest:
        """What is measured of one variant at one width (None: as it was adapted)."""
        made = self.adapted(sink) if row is None else self.quantized(sink, row)
        name = model_name(sink, row)
        bits = FULL if row is None else QuantizationConfig(**dataclasses.asdict(row)).bits
        stage = Stage(
            f"scores-{sink}-{bits}",
            dataclasses.asdict(self.recipe.evaluation),
            {"model": made.fingerprint, "corpus": self.corpus_manifest.fingerprint},
            partial(self._score, name),
        )
        return self._run(stage)

    @cached_property
    def judge(self) -> Recogniser:
        """The recogniser that hears what the models say."""
        return load_recogniser(self.recipe.evaluation.recogniser)

    def _score(self, name: str, work: Path) -> None:
        lm = SpeechLM.load(self.folder / name / SPEECHLM)
        held_out = self.corpus.utterances("held_out")
        assessment = assess(lm, held_out, self.judge, self.recipe.evaluation, self.watcher.note)
        write_text(work / RESULT, json.dumps(dataclasses.asdict(assessment), indent=1) + "\n")

    def models(self) -> list[tuple[str, QuantizationRow | None]]:
        """Every model of the run: each sink in full precision and at every width."""
        return [(sink, row) for sink in self.recipe.attention.sinks for row in (None, *self.recipe.quantization)]


def model_name(sink: str, row: QuantizationRow | None) -> str:
    """Name the stage of a model."""
    return sink if row is None else f"{sink}-{QuantizationConfig(**dataclasses.asdict(row)).bits}"


def adapt_model(
    model: PreTrainedModel,
    corpus: Corpus,
    vocabulary: Vocabulary,
    config: AdaptationConfig,
    folder: Path,
    report: Report,
) -> Training:
    """Adapt a model, its attention installed, to a corpus; live measures are taken on what the corpus held out.

    Args:
        model: with the vocabulary's embeddings.
        corpus: what it learns from.
        vocabulary: how that is written.
        config: how it learns.
        folder: for the log; checkpoints are in it until the training is done.
        report: told of every step.
    """
    stream = ExampleStream(
        corpus.utterances("train"),
        vocabulary,
        config.task_weights,
        config.batch_bins,
        config.seed,
        config.curriculum,
        model.config.max_position_embeddings,
    )
    held_out = corpus.utterances("held_out")
    measure = live_measure(vocabulary, held_out) if held_out else None
    training = adapt(model, stream, config, folder, measure=measure, report=report)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)  # only needed while it trained
    return training


def adapt_speechlm(
    lm: SpeechLM, corpus: Corpus, sink: str | None, config: AdaptationConfig, folder: Path, report: Report
) -> Training:
    """Adapt a SpeechLM further and write it to ``folder/speechlm``; ``sink`` None keeps its attention.

    Raises:
        UserError: the corpus has units of another codebook.
    """
    require_match("the model (its codebook)", lm.codebook.fingerprint, corpus.codebook.fingerprint)
    if sink is not None:
        install(lm.model, sink)
    training = adapt_model(lm.model, corpus, lm.vocabulary, config, folder / "training", report)
    SpeechLM(training.model, lm.vocabulary, lm.codebook, lm.vocoder, limits=lm.limits).save(folder / SPEECHLM)
    return training


def make_vocoder(config: VocoderTrainingConfig, corpus: Corpus, folder: Path) -> Vocoder:
    """Train a vocoder on the recordings that a corpus kept, and write it into ``folder``.

    Raises:
        UserError: the corpus kept no audio.
    """
    changes = {k: v for k, v in (("steps", config.steps), ("batch", config.batch)) if v is not None}
    vocoder = train_vocoder(
        corpus.recordings(),
        folder / "training",
        corpus.codebook.fingerprint,
        VocoderConfig.preset(config.preset, units=corpus.codebook.size),
        dataclasses.replace(VocoderTraining.preset(config.preset), seed=config.seed, **changes),
    )
    vocoder.save(folder)
    return vocoder


def calibration_batches(
    corpus: Corpus, vocabulary: Vocabulary, sequences: int, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Draw calibration sequences, the four tasks in turn, from what a corpus holds to train on."""
    utterances = corpus.utterances("train")
    order = np.random.default_rng(seed).permutation(len(utterances))
    chosen = [utterances[i] for i in order[: max(1, -(-sequences // len(TASKS)))]]
    examples = [made for task in TASKS for made in task_examples(vocabulary, chosen, task)]
    return list(padded_batches(examples[:sequences]))


def language_model(name: str) -> str:
    """Give what transformers loads for a name: the folder of a model that travels in a package, or the name itself."""
    return str(embedded(name)) if name in embedded_names() else name


def ready_made(name: str, *, must_exist: bool = True) -> Path | None:
    """Find a ready-made part: a SpARQ folder, or the name of one that ships.

    Raises:
        UserError: there is none, and there must be.
    """
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    try:
        return shipped(name)
    except UserError:
        if must_exist:
            raise
    return None


def _known(folder: Path, kind: str) -> dict[str, str]:
    manifest = read_manifest(folder, kind)
    return {"ready": fingerprint([manifest.fingerprint, dict(manifest.inputs)])}
