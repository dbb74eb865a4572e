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

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparq.adaptation.packed_linear import require_bitsandbytes
from sparq.adaptation.start import new_model, pretrained_model
from sparq.artifacts import Manifest, fingerprint, read_manifest, write_text
from sparq.assets import language_model, ready_made
from sparq.attention import install
from sparq.config import QuantizationRow
from sparq.corpus.build import corpus_stage
from sparq.corpus.corpus import Corpus
from sparq.device import usual_device
from sparq.errors import UserError
from sparq.evaluation.scoring import assess
from sparq.language.folder import fingerprint_of_model, load_language_model, load_tokenizer, require_language_model
from sparq.language.speech_lm import SpeechLM
from sparq.language.vocabulary import Vocabulary, load_vocabulary
from sparq.making import (
    SPEECHLM,
    TRAINING,
    Watcher,
    adapt_model,
    forget_checkpoints,
    known,
    learn_vocabulary,
    make_vocoder,
    quantize_into,
    vocoder_start,
)
from sparq.quantization import QuantizationConfig
from sparq.recipe import Recipe, shipped_recipes
from sparq.speech.recogniser import Recogniser, load_recogniser
from sparq.speech.speaker import load_speaker_encoder
from sparq.speech.vocoder import Vocoder
from sparq.stages import Stage, run_stage

FULL = "W16A16"
RESULT = "result.json"


class Run:
    """A recipe at work in its folder."""

    def __init__(
        self, recipe: Recipe, watcher: Watcher | None = None, *, quiet: bool = True, variant: str = ""
    ) -> None:
        """Prepare; nothing is made yet.

        Args:
            recipe: what to do.
            watcher: told how it goes.
            quiet: keeps the corpus from drawing its own progress bar.
            variant: stands before the names of the models' stages ("lora-max"), so that recipes which differ in their
                adaptation alone share a folder, and in it corpus, vocabulary and vocoder.
        """
        self.recipe = recipe
        self._variant = f"{variant}-" if variant else ""
        self.folder = recipe.folder
        self.watcher = watcher or Watcher()
        self._quiet = quiet
        self._done: dict[str, Manifest] = {}

    def check(self) -> None:
        """Say early what would only be found out late.

        Raises:
            UserError: a ready-made part, the pretrained model, the judge or a package that is needed cannot be had, or
                two rows make models of one name.
        """
        recipe = self.recipe
        if recipe.corpus.name is not None:
            with _naming_who_makes(recipe.corpus.name):
                read_manifest(Path(recipe.corpus.name), "corpus")
        for name in (recipe.vocabulary.name, recipe.vocoder.name):
            if name is not None:
                with _naming_who_makes(name):
                    ready_made(name)
        if recipe.vocoder.name is None:
            with _naming_who_makes(recipe.vocoder.start or ""):
                vocoder_start(recipe.vocoder)
            if recipe.vocoder.speaker_encoder is not None:
                load_speaker_encoder(recipe.vocoder.speaker_encoder)
        self._check_model()
        if recipe.adaptation.method == "qlora":
            require_bitsandbytes()
        names = [model_name("", row) for row in recipe.quantization]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"quantization: two rows make the model {name[1:]} (expected one row for each)")
        _ = self.judge

    def _check_model(self) -> None:
        recipe, name = self.recipe, self.recipe.model.name
        extends = recipe.vocabulary.name is None and recipe.vocabulary.mode == "extend"
        if extends and name is None:
            raise UserError("vocabulary.mode: extend needs model.name (the pretrained model whose tokenizer is kept)")
        joint = recipe.vocabulary.name is None and not extends
        taught = recipe.adaptation.text_targets == "model"
        if taught and (name is None or joint):
            raise UserError(
                "adaptation.text_targets: model needs model.name (the text model that textLM learns from) and "
                "vocabulary.mode: extend (its words)"
            )
        for weights in dict.fromkeys(map(recipe.model.weights, recipe.attention.sinks)):
            if weights is None:
                continue
            if ready_made(weights, must_exist=False) is None:
                require_language_model(language_model(weights), "model.name")
                if extends:
                    load_tokenizer(language_model(weights), "model.name")
            elif taught:
                raise UserError(f"adaptation.text_targets: model (model.name: {weights} is a SpeechLM, no text model)")

    def _run(self, stage: Stage) -> Manifest:
        if stage.name not in self._done:
            self._done[stage.name] = run_stage(self.folder, stage, self.watcher.stage)
        return self._done[stage.name]

    @cached_property
    def _corpus(self) -> dict[str, str]:
        """The corpus as the input of a stage, made if need be."""
        config = self.recipe.corpus
        if config.name is not None:
            return {"corpus": read_manifest(Path(config.name), "corpus").fingerprint}
        return {"corpus": self._run(corpus_stage(config, quiet=self._quiet)).fingerprint}

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus of the run."""
        assert self._corpus
        return Corpus.load(Path(self.recipe.corpus.name or self.folder / "corpus"))

    @cached_property
    def vocabulary_manifest(self) -> Manifest:
        """The vocabulary, made or copied if need be."""
        config = self.recipe.vocabulary
        ready = None if config.name is None else ready_made(config.name)
        inputs = self._corpus if ready is None else known(ready, "vocabulary")
        if ready is None and config.mode == "extend":
            inputs = {**inputs, "tokenizer": fingerprint(self._tokenizer().get_vocab())}
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
        config = self.recipe.vocabulary
        tokenizer = self._tokenizer() if config.mode == "extend" else None
        learn_vocabulary(self.corpus, config, tokenizer, self.recipe.corpus.seed).save(work)

    def _tokenizer(self) -> Any:
        """Load the tokenizer that is extended: that of the model, or of the first of several."""
        name = self.recipe.model.weights(self.recipe.attention.sinks[0])
        return load_tokenizer(language_model(str(name)), "model.name")

    @cached_property
    def vocoder_manifest(self) -> Manifest:
        """The vocoder, trained or copied if need be."""
        config = self.recipe.vocoder
        ready = None if config.name is None else ready_made(config.name)
        inputs = {**self._corpus, **vocoder_start(config)} if ready is None else known(ready, "vocoder")
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
            **recipe.attention.arguments(sink),
            "adaptation": recipe.adaptation,
        }
        inputs = {
            **self._corpus,
            "vocabulary": self.vocabulary_manifest.fingerprint,
            "vocoder": self.vocoder_manifest.fingerprint,
        }
        start = None if name is None else ready_made(name, must_exist=False)
        if start is not None:
            inputs |= known(start, "speechlm")
        elif name is not None and Path(name).is_dir():
            inputs["weights"] = fingerprint_of_model(Path(name))
        build, join = partial(self._adapt, sink), partial(self._train, sink)
        return self._run(Stage(self.name(sink), settings, inputs, build, join))

    def start(self, sink: str) -> PreTrainedModel:
        """Give the model that a variant's adaptation starts from, before its attention is installed."""
        recipe, vocabulary = self.recipe, self.vocabulary
        name = recipe.model.weights(sink)
        ready = None if name is None else ready_made(name, must_exist=False)
        if ready is not None:
            return SpeechLM.load(ready).model
        if name is not None:
            told = self.corpus.utterances("train")
            return pretrained_model(language_model(name), vocabulary, recipe.adaptation.seed, told)
        return new_model(recipe.model, vocabulary, recipe.adaptation.seed)

    def _before(self, sink: str) -> PreTrainedModel | None:
        """Give the text model that a variant was, where textLM is to be learnt from it."""
        name = self.recipe.model.weights(sink)
        if self.recipe.adaptation.text_targets == "words" or name is None or ready_made(name, must_exist=False):
            return None
        return load_language_model(language_model(name), "model.name")

    def _adapt(self, sink: str, work: Path) -> None:
        self._speechlm(self._train(sink, work)).save(work / SPEECHLM)
        forget_checkpoints(work / TRAINING)

    def _train(self, sink: str, work: Path) -> PreTrainedModel:
        recipe = self.recipe
        model = self.start(sink)
        install(model, **recipe.attention.arguments(sink))
        self._speechlm(model)  # raises before the training if the parts were not made for each other
        report, before = self.watcher.training, self._before(sink)
        training = adapt_model(
            model, self.corpus, self.vocabulary, recipe.adaptation, work / TRAINING, report, before=before
        )
        return training.model

    def quantized(self, sink: str, row: QuantizationRow) -> Manifest:
        """One variant at one width, quantised if need be (simulated)."""
        inputs = {"model": self.adapted(sink).fingerprint}
        config = QuantizationConfig(**dataclasses.asdict(row))
        build = partial(self._quantize, sink, config)
        return self._run(Stage(self.name(sink, row), dataclasses.asdict(row), inputs, build))

    def _quantize(self, sink: str, config: QuantizationConfig, work: Path) -> None:
        quantize_into(self.folder / self.name(sink) / SPEECHLM, self.corpus, config, work / SPEECHLM, self.watcher)

    def scored(self, sink: str, row: QuantizationRow | None) -> Manifest:
        """What is measured of one variant at one width (None: as it was adapted)."""
        made = self.adapted(sink) if row is None else self.quantized(sink, row)
        name = self.name(sink, row)
        evaluation = dataclasses.asdict(self.recipe.evaluation)
        stage = Stage(
            f"scores-{name}-{FULL}" if row is None else f"scores-{name}",
            {key: value for key, value in evaluation.items() if key not in ("recordings", "spoken")},
            {"model": made.fingerprint, **self._corpus},
            partial(self._score, name),
        )
        return self._run(stage)

    @cached_property
    def judge(self) -> Recogniser:
        """The recogniser that hears what the models say."""
        return load_recogniser(self.recipe.evaluation.recogniser)

    def _score(self, name: str, work: Path) -> None:
        lm = SpeechLM.load(self.folder / name / SPEECHLM, str(usual_device()))
        held_out = self.corpus.utterances("held_out")
        assessment = assess(lm, held_out, self.judge, self.recipe.evaluation, self.watcher.note)
        write_text(work / RESULT, json.dumps(dataclasses.asdict(assessment), indent=1) + "\n")

    def name(self, sink: str, row: QuantizationRow | None = None) -> str:
        """Name the stage of one model, behind what the variant of the recipe is called."""
        return self._variant + model_name(sink, row)

    def models(self) -> list[tuple[str, QuantizationRow | None]]:
        """Every model of the run: each sink in full precision and at every width."""
        return [(sink, row) for sink in self.recipe.attention.sinks for row in (None, *self.recipe.quantization)]


def model_name(sink: str, row: QuantizationRow | None) -> str:
    """Name the stage of one: ``max``, ``max-W8A8`` (SmoothQuant), ``max-W8A8-clip1``, ``max-W8A8-rotation-gptq``."""
    if row is None:
        return sink
    config = QuantizationConfig(**dataclasses.asdict(row))
    name = config.name.removeprefix("smoothquant").removeprefix("-")
    return "-".join([sink, config.bits, *([name] if name else [])])


@contextlib.contextmanager
def _naming_who_makes(part: str) -> Iterator[None]:
    """Add to the error about a part that is missing which shipped recipe makes it, if one does."""
    try:
        yield
    except UserError as error:
        makes = next((name for name in shipped_recipes() if Path("runs", name) in Path(part).parents), None)
        if makes is None or Path(part).exists():
            raise
        raise UserError(f"{error}; sparq run {makes} makes it") from error
