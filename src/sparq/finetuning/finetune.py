"""Fine-tuning as stages: corpus → scores before → training → scores after → a SpeechLM folder with its card.

::

    runs/mine/          the model: sparq.load() reads it; README.md is its card, finetune.json every number
    runs/mine.work/     the stages that led to it: corpus, before, tuned, after

The second folder may be deleted; while it is there, another try with other settings need not listen to all of it again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from functools import cached_property, partial
from pathlib import Path

from sparq.adaptation.ends import best_step
from sparq.adaptation.packed_linear import require_bitsandbytes
from sparq.adaptation.training import HISTORY, Measure
from sparq.artifacts import named_folder, provenance, read_manifest, require_match, require_writable, write_text
from sparq.config import AdaptationConfig
from sparq.corpus.build import corpus_stage
from sparq.corpus.corpus import Corpus
from sparq.corpus.plan import Split
from sparq.device import usual_device
from sparq.errors import UserError
from sparq.evaluation.scoring import task_losses
from sparq.finetuning.outcome import Outcome, card_of, name_of
from sparq.finetuning.recordings import Recordings, corpus_config, is_corpus
from sparq.finetuning.rehearsal import GeneralText, general_text
from sparq.finetuning.scores import Scores, fitting, score, warnings
from sparq.language.card import CARD, card_licence, model_card
from sparq.language.listening import LISTENING_IN_VIEWS
from sparq.language.speech_lm import SpeechLM
from sparq.language.vocabulary import Vocabulary
from sparq.making import SPEECHLM, TRAINING, Watcher, adapt_model, forget_checkpoints
from sparq.quantization.blocks import architecture
from sparq.schema import dump
from sparq.stages import Stage, StageEvent, read_stage, require_free, require_same, run_stage

OUTCOME, SCORES = "finetune.json", "scores.json"
SPLITS: tuple[Split, Split] = ("train", "held_out")


class FineTuning:
    """One fine-tuning at work.

    Args:
        folder: recordings with their transcripts, or a corpus that is ready.
        recordings: what it holds.
        model: folder of the SpeechLM that learns.
        adaptation: how.
        output: folder of the result.
        held_out: how many different sentences are held out; None for a tenth, within bounds.
        beam: width of the beam search that it is scored with.
        overwrite: replace an output that was made with other settings or inputs.
        watcher: told how it goes.

    Raises:
        UserError: too few sentences; the output is in the way, not to be replaced, or cannot be written; there is no
            such model, or it is quantised or deployed; or the method needs a package that is not installed.
    """

    def __init__(
        self,
        folder: Path,
        recordings: Recordings,
        model: Path,
        adaptation: AdaptationConfig,
        output: Path,
        *,
        held_out: int | None = None,
        beam: int = LISTENING_IN_VIEWS.beams,
        overwrite: bool = False,
        watcher: Watcher | None = None,
    ) -> None:
        """Look at everything that can be looked at before the work begins; nothing is made yet."""
        self.folder, self.recordings, self.model, self.adaptation = folder, recordings, model, adaptation
        self.output = output = named_folder(output)
        self.beam, self.overwrite, self.watcher = beam, overwrite, watcher or Watcher()
        self.work = output.with_name(f"{output.name}.work")
        if adaptation.method == "qlora":
            require_bitsandbytes()
        _refuse_low_bits(model)
        require_free(output)
        require_writable(output)
        self._ready = is_corpus(folder)
        if self._ready and held_out is not None:
            raise UserError(f"--held-out: {held_out} ({folder} is a corpus, which has held out its own)")
        if self._ready:
            known = read_manifest(folder, "corpus").fingerprint
            self._corpus_stage = None
        else:
            config = corpus_config(folder, recordings, held_out, model)
            self._corpus_stage = corpus_stage(config, quiet=True, skip_untranscribed=True)
            known = self._corpus_stage.fingerprint
        inputs = {"model": read_manifest(model, "speechlm").fingerprint, "corpus": known}
        self._before = Stage("before", {"beam": beam}, inputs, partial(self._score, model))
        self._tuned = Stage("tuned", {"adaptation": adaptation}, inputs, self._build, join=self._train)
        inputs = {"model": self._tuned.fingerprint, "corpus": known}
        self._after = Stage("after", {"beam": beam}, inputs, partial(self._score, self.work / "tuned" / SPEECHLM))
        inputs = {"before": self._before.fingerprint, "after": self._after.fingerprint}
        self._final = Stage(output.name, {"recordings": recordings}, inputs, self._put_together)
        if not overwrite:
            require_same(output, self._final)

    def run(self) -> Outcome:
        """Do what is not done yet, and tell what came of it.

        Raises:
            UserError: the corpus has units of another codebook, nothing is held out, or no recording fits into the
                model.
        """
        done = read_stage(self.output)
        if done is not None and done.fingerprint == self._final.fingerprint:
            self.watcher.stage(StageEvent(self._final.name, "skipped", self.output))
        else:
            if self._corpus_stage is not None:
                self.watcher.note(f"listening to {self.recordings.minutes:.1f} minutes of speech")
                run_stage(self.work, self._corpus_stage, self.watcher.stage)
            self._check()
            for stage in (self._before, self._tuned, self._after):
                run_stage(self.work, stage, self.watcher.stage)
            run_stage(self.output.parent, self._final, self.watcher.stage, overwrite=self.overwrite)
        return Outcome.read(self.output / OUTCOME)

    @cached_property
    def corpus(self) -> Corpus:
        """What is learnt from."""
        return Corpus.load(self.folder if self._ready else self.work / "corpus")

    @cached_property
    def general(self) -> GeneralText:
        """What is rehearsed, and what shows forgetting."""
        learnt, held_out = (self.corpus.utterances(split) for split in SPLITS)
        return general_text((one.text for one in learnt), (one.text for one in held_out))

    @cached_property
    def _base(self) -> SpeechLM:
        return SpeechLM.load(self.model)

    def _check(self) -> None:
        """Say before the work what would only be found out in it."""
        lm, corpus = self._base, self.corpus
        architecture(lm.model)  # refuses one that cannot be adapted
        require_match(f"{self.model}: the model (its codebook)", lm.codebook.meaning, corpus.codebook.meaning)
        for split, purpose in zip(SPLITS, ("to learn from", "held out to measure on"), strict=True):
            said = corpus.utterances(split)
            if not said:
                raise UserError(f"{self.folder}: nothing is {purpose}")
            if not fitting(lm, said):
                raise UserError(
                    f"{self.folder}: none of the {len(said)} recordings {purpose} fits into the model's "
                    f"{lm.model.config.max_position_embeddings} positions (cut them into sentences)"
                )
        if self._too_long:
            self.watcher.note(f"{self._too_long} recordings left out: too long for the model")
        if not self.general.rehearsed:
            self.watcher.note("no general text in this installation: only your own transcripts are rehearsed")

    @cached_property
    def _too_long(self) -> int:
        """Utterances that do not fit into the model's positions."""
        said = [one for split in SPLITS for one in self.corpus.utterances(split)]
        return len(said) - len(fitting(self._base, said))

    def _score(self, model: Path, work: Path) -> None:
        lm = SpeechLM.load(model, str(usual_device()))
        held_out = fitting(lm, self.corpus.utterances("held_out"))
        found = score(lm, held_out, self.general.held_out, self.beam, self.watcher.note)
        write_text(work / SCORES, json.dumps(dataclasses.asdict(found), indent=1) + "\n")

    def _build(self, work: Path) -> None:
        self._train(work).save(work / SPEECHLM)
        forget_checkpoints(work / TRAINING)

    def _train(self, work: Path) -> SpeechLM:
        lm = SpeechLM.load(self.model)
        trained = adapt_model(
            lm.model,
            self.corpus,
            lm.vocabulary,
            self.adaptation,
            work / TRAINING,
            self.watcher.training,
            rehearsed=self.general.rehearsed,
            measure=self._measure(lm.vocabulary),
        )
        return lm.with_model(trained.model, self.corpus.codebook)

    def _measure(self, vocabulary: Vocabulary) -> Measure:
        """Measure what stopping needs on all that is held out; outliers would take several times as long."""
        held_out, stopping = self.corpus.utterances("held_out"), self.adaptation.early_stopping
        tasks = dict.fromkeys(["asr", "textlm", *([stopping.task] if stopping else [])])
        return lambda model: task_losses(model, vocabulary, held_out, tasks)

    def _put_together(self, work: Path) -> None:
        """Make the result of the stages: the model by links, for it need not lie on the disk twice."""
        shutil.copytree(self.work / "tuned" / SPEECHLM, work, dirs_exist_ok=True, copy_function=_link)
        outcome = self._outcome()
        write_text(work / OUTCOME, json.dumps(dataclasses.asdict(outcome), indent=1, ensure_ascii=False) + "\n")
        write_text(work / CARD, model_card(card_of(outcome, self.output.name)))

    def _outcome(self) -> Outcome:
        history = json.loads((self.work / "tuned" / TRAINING / HISTORY).read_text(encoding="utf-8"))
        stopping, last = self.adaptation.early_stopping, int(history[-1]["step"])
        learnt, held_out = (fitting(self._base, self.corpus.utterances(split)) for split in SPLITS)
        before, after = (
            Scores(**json.loads((self.work / name / SCORES).read_text(encoding="utf-8")))
            for name in ("before", "after")
        )
        return Outcome(
            folder=self.recordings.name,
            minutes=sum(len(one.units) for one in learnt) * self._seconds_a_frame / 60,
            learnt=len(learnt),
            held_out=len(held_out),
            left_out=self._left_out(),
            speakers=self.recordings.speakers,
            rehearsed=len(self.general.rehearsed),
            base=name_of(self.model),
            licence=card_licence(self.model),
            settings=dump(self.adaptation),
            beam=self.beam,
            steps=last,
            kept=best_step(history, stopping) if stopping else last,
            training_minutes=max(float(entry.get("seconds", 0)) for entry in history) / 60,
            before=before,
            after=after,
            warnings=[*self.recordings.warnings, *warnings(before, after)],
            made=provenance(),
        )

    @property
    def _seconds_a_frame(self) -> float:
        frames = sum(len(one.units) for split in SPLITS for one in self.corpus.utterances(split))
        return self.corpus.seconds / frames

    def _left_out(self) -> dict[str, int]:
        """Reason → recordings that were not used."""
        told = self.corpus.statistics
        reasons = Counter(told["left_out"])
        if "held out" in reasons:
            reasons["other recordings of held-out sentences"] = reasons.pop("held out")
        # A reason names its file, which here is one of many.
        reasons.update(skipped["reason"].rpartition(": ")[2].partition(" (")[0] for skipped in told["skipped"])
        reasons["longer than the model's positions"] = self._too_long
        return {reason: count for reason, count in reasons.items() if count}


def _refuse_low_bits(model: Path) -> None:
    settings = read_manifest(model, "speechlm").settings
    for kind, how in (("quantization", "quantised (simulated)"), ("deployment", "deployed")):
        if settings.get(kind):
            raise UserError(f"{model}: is {how}; fine-tune the model that it was made from")


def _link(source: str, target: str) -> str:
    """Give a file a second name; a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
