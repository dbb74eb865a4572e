"""Training on the four tasks, by transformers' Trainer on Accelerate.

What is ours is small: batches come ready from :class:`~sparq.adaptation.examples.ExampleStream`, Adam is the paper's
(E.1), a time limit, live measures, early stopping by them, and going on after a kill. Mixed precision, several devices,
gradient accumulation, checkpoints and logs are the Trainer's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from sparq.adaptation.arguments import trainer_arguments
from sparq.adaptation.ends import (
    START,
    best_step,
    is_spent,
    last_step,
    require_measured,
    seconds_taken,
    share_done,
    warmup_steps,
)
from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.lora import add_lora, keep_words, merge_lora
from sparq.adaptation.loss import counted_loss, logits_where_labels_count
from sparq.adaptation.optimizers import make_optimizer
from sparq.adaptation.qlora import BaseMemory, add_qlora, unpack_base
from sparq.adaptation.teacher import TextTeacher
from sparq.artifacts import write_text
from sparq.attention.install import base_model
from sparq.config import AdaptationConfig
from sparq.errors import UserError
from sparq.language.vocabulary import ExtendedVocabulary

HISTORY = "history.json"
MEMORY = "base_memory.json"
TENSORBOARD = "tensorboard"
_STATE = "trainer_state.json"

Logged = dict[str, float]
Measure = Callable[[PreTrainedModel], Mapping[str, float]]
Report = Callable[[int, float, Mapping[str, float]], None]


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training left behind.

    Attributes:
        model: the trained model in evaluation mode, adapters merged.
        history: by rising "step", what was logged: "loss" (nats a token, mean since the entry before), "learning_rate",
            "grad_norm" (before clipping), "seconds" (of training, over all its runs), and what was measured live.
        steps: optimizer steps taken in all.
        kept: the step that the weights are of: the last one, or with early stopping the best (0: as it began).
        memory: of the frozen base, before and after it was packed; None for other methods than QLoRA.
    """

    model: PreTrainedModel
    history: list[Logged]
    steps: int
    kept: int
    memory: BaseMemory | None = None


class AdaptationTrainer(Trainer):
    """Trainer with the optimizer that is asked for, batches that come ready, and an end in time."""

    def __init__(self, *args: Any, config: AdaptationConfig, **kwargs: Any) -> None:
        self._config = config
        super().__init__(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the loss as the Trainer does, with logits for what counts alone."""
        plain = base_model(self.accelerator.unwrap_model(model))
        with logits_where_labels_count(plain, inputs["labels"]):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that the configuration names."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self._config)
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Load batches as they come, on a GPU from a process of its own.

        The loader has its own generator: it would take a number from the one that dropout uses, once more in a
        training that goes on than in one that was never interrupted.
        """
        stream: Any = self.train_dataset
        loader = DataLoader(
            stream,
            batch_size=1,
            collate_fn=_only,
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
            num_workers=int(torch.cuda.is_available()),
        )
        return self.accelerator.prepare(loader)

    def go_on(self, checkpoint: Path | None) -> PreTrainedModel | PeftModel:
        """Train from a checkpoint or from the start; behind the end, only load what was trained."""
        stopping = self._config.early_stopping
        state = TrainerState.load_from_json(str(checkpoint / _STATE)) if checkpoint else TrainerState()
        stopped = stopping is not None and is_spent(state.log_history, stopping)
        if not stopped and share_done(self._config, state.global_step, self.args.max_steps, seconds_taken(state)) < 1:
            if stopping and checkpoint is None:
                self.save_model(f"{self.args.output_dir}/{START}")
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        else:
            self.state = state
            self._load_from_checkpoint(str(checkpoint))
        if self.kept != self.state.global_step:
            best = f"checkpoint-{self.kept}" if self.kept else START
            self._load_from_checkpoint(f"{self.args.output_dir}/{best}")
        # Out of the wrappers of several devices, and of half precision, which would stay around the forward pass.
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        base_model(model).config.use_cache = True
        return model

    @property
    def kept(self) -> int:
        """The step whose weights are the result."""
        if self._config.early_stopping is None:
            return self.state.global_step
        # What is measured is in the history of the first process alone.
        return _largest(best_step(self.state.log_history, self._config.early_stopping), self.args.device)


class _Live(TrainerCallback):
    """Measures the model as it trains, keeps what is logged, tells who watches, and stops when time is up."""

    def __init__(self, config: AdaptationConfig, folder: Path, measure: Measure | None, report: Report | None) -> None:
        self._config = config
        self._folder = folder
        self._measure = measure
        self._report = report
        self._board: SummaryWriter | None = None
        self._latest: Logged = {}
        self._began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = time.monotonic() - seconds_taken(state)
        if state.is_world_process_zero:
            # Hides what a killed run had written behind the checkpoint that this one goes on from.
            self._board = SummaryWriter(str(self._folder / TENSORBOARD), purge_step=state.global_step + 1)
        if self._config.early_stopping and state.global_step == 0:
            self._measure_live(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        minutes = self._config.minutes
        if minutes is not None and _largest(self._elapsed() >= 60 * minutes, args.device):
            control.should_training_stop = control.should_save = True
        # A loss that is not finite must be seen before the model is saved.
        control.should_log |= control.should_save
        stopping = self._config.early_stopping
        if state.global_step % self._config.save_every == 0 or (stopping and control.should_training_stop):
            self._measure_live(state, kwargs["model"])
            if stopping:
                # The Trainer lets the checkpoint of this step stay.
                state.best_global_step = _largest(best_step(state.log_history, stopping), args.device)
                control.should_training_stop |= bool(_largest(is_spent(state.log_history, stopping), args.device))
        if self._report and state.is_world_process_zero:
            share = share_done(self._config, state.global_step, state.max_steps, self._elapsed())
            self._report(state.global_step, share, self._latest)

    def _measure_live(self, state: TrainerState, trained: nn.Module) -> None:
        """Measure the model in the first process, and put that into the history."""
        if self._measure is None or not state.is_world_process_zero:
            return
        model = base_model(trained)
        values = {name: float(value) for name, value in self._measure(model).items()}
        model.train()
        if self._config.early_stopping:
            require_measured(values, self._config.early_stopping)
        state.log_history.append({**values, "step": state.global_step})
        self._show(values, state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        state.log_history[-1]["seconds"] = self._elapsed()
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"adaptation: the loss is {logs['loss']} at step {state.global_step} (lower learning_rate?)"
            )
        self._show(logs, state.global_step)

    def close(self) -> None:
        """Write out what TensorBoard shall see."""
        if self._board:
            self._board.close()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _show(self, values: Mapping[str, float], step: int) -> None:
        self._latest = {**self._latest, **values}
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"train/{name}", value, step)


def adapt(
    model: PreTrainedModel,
    stream: ExampleStream,
    config: AdaptationConfig,
    folder: Path,
    *,
    measure: Measure | None = None,
    report: Report | None = None,
    before: PreTrainedModel | None = None,
) -> Training:
    """Train a model on the four tasks, going on from the newest checkpoint in ``folder``.

    A training that was killed and goes on gives what it would have given undisturbed. Under ``torchrun`` each process
    takes its share of the batches, and the first one writes.

    Args:
        model: with its attention installed and the joint vocabulary's embeddings; it is trained in place.
        stream: the batches.
        config: method, optimizer, schedule, ends; the same as when the checkpoints were made.
        folder: for checkpoints, TensorBoard events, the history, and what QLoRA saved (``MEMORY``).
        measure: called every ``config.save_every`` steps with the model (adapters in place); its values join the
            history, and early stopping goes by them.
        report: called after every step with the step, the share of the training that is done (0 to 1), and what was
            logged last under each name.
        before: the text model that it was, whose words are the first of the vocabulary; for ``text_targets: model``.

    Raises:
        UserError: the loss is not finite, a decaying schedule has no last step, half precision has no GPU, QLoRA no
            bitsandbytes, early stopping no measure, or textLM no model that it shall learn from.
    """
    teacher = _teacher(before, stream, config)
    if config.early_stopping and measure is None:
        require_measured({}, config.early_stopping)
    if config.precision == "float16" and not torch.cuda.is_available():
        raise UserError("adaptation.precision: float16 needs a GPU (expected float32 or bfloat16 without one)")
    trained, memory = _with_adapters(model, config)
    if isinstance(trained, PeftModel) and isinstance(stream.vocabulary, ExtendedVocabulary):
        keep_words(trained, stream.vocabulary.text_size)
    arguments = trainer_arguments(config, folder)
    arguments.max_steps = last_step(config, stream, arguments.world_size)
    arguments.warmup_steps = warmup_steps(config, arguments.max_steps)
    checkpoint = last_checkpoint(folder)
    taken = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    live = _Live(config, folder, measure, report)
    trainer = AdaptationTrainer(
        model=trained,
        args=arguments,
        train_dataset=stream.starting_at(taken * config.accumulate * arguments.world_size),
        callbacks=[live],
        compute_loss_func=partial(counted_loss, smoothing=config.label_smoothing, teacher=teacher),
        config=config,
    )
    trainer.remove_callback(PrinterCallback)
    try:
        finished = trainer.go_on(checkpoint)
    finally:
        live.close()
    trainer.accelerator.wait_for_everyone()  # all have read the checkpoints that the caller may remove
    history = _by_step(trainer.state.log_history)
    if trainer.is_world_process_zero():
        write_text(folder / HISTORY, json.dumps(history, indent=1) + "\n")
        if memory:
            write_text(folder / MEMORY, json.dumps(dataclasses.asdict(memory), indent=1) + "\n")
    plain = merge_lora(unpack_base(finished)) if isinstance(finished, PeftModel) else finished
    return Training(plain.eval(), history, trainer.state.global_step, trainer.kept, memory)


def _teacher(before: PreTrainedModel | None, stream: ExampleStream, config: AdaptationConfig) -> TextTeacher | None:
    if config.text_targets == "words":
        return None
    if before is None or not isinstance(stream.vocabulary, ExtendedVocabulary):
        raise UserError(
            "adaptation.text_targets: model (expected with a pretrained text model, and a vocabulary that extends it)"
        )
    return TextTeacher(before, stream.vocabulary)


def _with_adapters(
    model: PreTrainedModel, config: AdaptationConfig
) -> tuple[PreTrainedModel | PeftModel, BaseMemory | None]:
    if config.method == "qlora":
        return add_qlora(model, config.lora, config.qlora, config.seed)
    return (add_lora(model, config.lora, config.seed) if config.method == "lora" else model), None


def last_checkpoint(folder: Path) -> Path | None:
    """Find the newest whole checkpoint; one that a kill cut short lacks the state that is written last."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    for checkpoint in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


def _largest(here: int, device: torch.device) -> int:
    """Give the largest of what the processes have, so that all do the same; a truth is 1."""
    if not torch.distributed.is_initialized():
        return int(here)
    number = torch.tensor(int(here), device=device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return int(number)


def _by_step(log: Sequence[Mapping[str, float]]) -> list[Logged]:
    """Join what was logged at the same step; the Trainer's last entry, a summary, is left out."""
    joined: dict[int, Logged] = {}
    for entry in log:
        if "train_runtime" not in entry:
            values = {name: value for name, value in entry.items() if name != "epoch"}
            joined.setdefault(int(entry["step"]), {}).update(values)
    return [joined[step] for step in sorted(joined)]


def _only(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    (batch,) = items
    return batch
