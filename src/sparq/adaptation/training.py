"""Training on the four tasks, by transformers' Trainer on Accelerate.

What is ours is small: batches come ready from :class:`~sparq.adaptation.examples.ExampleStream`, Adam is the paper's
(E.1), a time limit, live measures, and going on after a kill. Mixed precision, several devices, gradient accumulation,
checkpoints and logs are the Trainer's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.lora import add_lora, merge_lora
from sparq.artifacts import write_text
from sparq.config import AdaptationConfig
from sparq.errors import UserError

SCHEDULES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "inverse_sqrt": "inverse_sqrt",
}
UNLIMITED = 10**9
HISTORY = "history.json"

Measure = Callable[[nn.Module], Mapping[str, float]]
Report = Callable[[int, int, Mapping[str, float]], None]


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training left behind.

    Attributes:
        model: the trained model, adapters merged.
        history: logged values, each with its step: loss, learning_rate, grad_norm, and what was measured live.
        steps: optimizer steps taken in all.
    """

    model: PreTrainedModel
    history: list[dict[str, float]]
    steps: int


class AdaptationTrainer(Trainer):
    """Trainer with the paper's optimizer (E.1: Adam) over the parameters that are trained."""

    def __init__(self, *args: Any, config: AdaptationConfig, **kwargs: Any) -> None:
        self._config = config
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make Adam, whose weight decay is part of the gradient, or AdamW."""
        if self.optimizer is None:
            kind = torch.optim.Adam if self._config.optimizer == "adam" else torch.optim.AdamW
            trained = [p for p in (model or self.accelerator.unwrap_model(self.model)).parameters() if p.requires_grad]
            self.optimizer = kind(
                trained,
                lr=self._config.learning_rate,
                betas=(0.9, self._config.beta2),
                weight_decay=self._config.weight_decay,
                fused=True,
            )
        return self.optimizer


class _Clock(TrainerCallback):
    """Stops after so many minutes of training."""

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60
        self._started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if time.monotonic() - self._started >= self._seconds:
            control.should_training_stop = True


class _Live(TrainerCallback):
    """Measures the model as it trains, keeps what is logged, and tells who watches."""

    def __init__(self, measure: Measure | None, every: int, report: Report | None, board: SummaryWriter) -> None:
        self._measure = measure
        self._every = every
        self._report = report
        self._board = board

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._measure and state.is_world_process_zero and state.global_step % self._every == 0:
            model = kwargs["model"]
            values = dict(self._measure(model))
            model.train()
            state.log_history.append({**values, "step": state.global_step})
            for name, value in values.items():
                self._board.add_scalar(f"live/{name}", value, state.global_step)
        if self._report:
            last = state.log_history[-1] if state.log_history else {}
            self._report(state.global_step, state.max_steps, last)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if "loss" in logs and not math.isfinite(logs["loss"]):
            raise UserError(
                f"adaptation: the loss is {logs['loss']} at step {state.global_step} (lower learning_rate?)"
            )
        for name, value in logs.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"train/{name}", value, state.global_step)


def last_checkpoint(folder: Path) -> Path | None:
    """Find the newest whole checkpoint; one that a kill cut short lacks the state that is written last."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        return checkpoint
    return None


def adapt(
    model: PreTrainedModel,
    stream: ExampleStream,
    config: AdaptationConfig,
    folder: Path,
    *,
    measure: Measure | None = None,
    report: Report | None = None,
) -> Training:
    """Train a model on the four tasks, going on from the newest checkpoint in ``folder``.

    Args:
        model: with its attention installed and the joint vocabulary's embeddings.
        stream: the batches.
        config: method, optimizer, schedule, ends.
        folder: for checkpoints, TensorBoard events and the history.
        measure: called every ``config.save_every`` steps with the model; its values join the history.
        report: called after every step with the step, the last step, and what was logged last.

    Raises:
        UserError: the loss is not finite, or a decaying schedule has no last step.
    """
    steps = _last_step(config, stream)
    trained: PreTrainedModel | PeftModel = add_lora(model, config.lora) if config.method == "lora" else model
    folder.mkdir(parents=True, exist_ok=True)
    board = SummaryWriter(str(folder / "tensorboard"))
    callbacks: list[TrainerCallback] = [_Live(measure, config.save_every, report, board)]
    if config.minutes is not None:
        callbacks.append(_Clock(config.minutes))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,  # an item of the stream is a whole batch
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        lr_scheduler_type=SCHEDULES[config.schedule],
        warmup_steps=config.warmup_steps,
        max_grad_norm=config.gradient_clip,
        label_smoothing_factor=config.label_smoothing,
        bf16=config.precision == "bfloat16",
        fp16=config.precision == "float16",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=config.log_every,
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"dispatch_batches": False},
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = AdaptationTrainer(
        model=trained,
        args=arguments,
        train_dataset=stream,
        data_collator=_only,
        callbacks=callbacks,
        config=config,
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    board.close()
    history = [{k: v for k, v in entry.items() if k != "epoch"} for entry in trainer.state.log_history]
    write_text(folder / HISTORY, json.dumps(history, indent=1) + "\n")
    finished = merge_lora(trained) if isinstance(trained, PeftModel) else trained
    finished.eval()
    return Training(finished, history, trainer.state.global_step)


def _last_step(config: AdaptationConfig, stream: ExampleStream) -> int:
    ends = [config.steps] if config.steps is not None else []
    if config.epochs is not None:
        ends.append(max(1, round(config.epochs * stream.batches_per_epoch / config.accumulate)))
    if not ends and config.schedule in {"linear", "cosine"}:
        raise UserError(
            f"adaptation.schedule: {config.schedule} needs a last step (give steps or epochs beside minutes)"
        )
    return min(ends, default=UNLIMITED)


def _only(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    (batch,) = items
    return batch
