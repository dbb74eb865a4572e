"""When a training ends: by steps, epochs or minutes, or early, where a held-out loss has stopped falling.

Early stopping follows from the history that a checkpoint carries, so a training that was killed goes on with the best
step and the patience that it had, and one that had stopped stays stopped. (transformers' EarlyStoppingCallback restores
its counter, but trains on where a training had stopped; and it never looks at the weights that training began with.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import TrainerState

from sparq.adaptation.examples import ExampleStream
from sparq.config import AdaptationConfig, EarlyStoppingConfig
from sparq.errors import UserError

ENDLESS = 10**9  # steps of a training that only time ends
WARMUP_SHARE, LONGEST_WARMUP = 0.1, 2500  # where none is given: of the steps, and the paper's (E.1)
ENDLESS_WARMUP = 100  # where there is no last step to take a share of
START = "start"  # the folder of the weights before the first step, beside the checkpoints


def last_step(config: AdaptationConfig, stream: ExampleStream, processes: int) -> int:
    """Give the step at which steps or epochs end a training; ``ENDLESS`` where neither is given.

    Raises:
        UserError: a decaying schedule has no last step.
    """
    ends = [config.steps] if config.steps is not None else []
    if config.epochs is not None:
        ends.append(max(1, round(config.epochs * stream.batches_per_epoch / (config.accumulate * processes))))
    if not ends and config.schedule in {"linear", "cosine"}:
        raise UserError(
            f"adaptation.schedule: {config.schedule} needs a last step (give steps or epochs beside minutes)"
        )
    return min(ends, default=ENDLESS)


def warmup_steps(config: AdaptationConfig, last: int) -> int:
    """Give the steps of the warm-up, where none are given a share of all."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return ENDLESS_WARMUP if last == ENDLESS else min(LONGEST_WARMUP, round(WARMUP_SHARE * last))


def seconds_taken(state: TrainerState) -> float:
    """Read how long the training had taken when it was last logged."""
    return max((float(entry.get("seconds", 0)) for entry in state.log_history), default=0.0)


def share_done(config: AdaptationConfig, step: int, last: int, seconds: float) -> float:
    """Say which share of a training is done, 0 to 1, if it is not stopped early."""
    return min(1.0, max(step / last, seconds / (60 * config.minutes) if config.minutes else 0.0))


def measure_of(config: EarlyStoppingConfig) -> str:
    """Name the live measure that is watched."""
    return f"held_out/{config.task}/loss"


def require_measured(values: Mapping[str, float], config: EarlyStoppingConfig) -> None:
    """Refuse live measures that lack what is to be watched.

    Raises:
        UserError: they do, because nothing that the task can be measured on is held out.
    """
    if measure_of(config) not in values:
        raise UserError(
            f"adaptation.early_stopping: nothing is held out that {config.task} could be measured on (expected a "
            "corpus with a held-out part)"
        )


def best_step(history: Sequence[Mapping[str, float]], config: EarlyStoppingConfig) -> int:
    """Give the step whose held-out loss is the lowest, the first of equals; 0 is before training.

    Args:
        history: entries with a "step", some of them with the watched measure.
        config: what is watched.
    """
    measured = _measured(history, config)
    return min(measured, key=lambda pair: (pair[1], pair[0]), default=(0, 0.0))[0]


def is_spent(history: Sequence[Mapping[str, float]], config: EarlyStoppingConfig) -> bool:
    """Tell whether the measure was taken ``config.patience`` times without a new best."""
    best = best_step(history, config)
    return sum(step > best for step, _ in _measured(history, config)) >= config.patience


def _measured(history: Sequence[Mapping[str, float]], config: EarlyStoppingConfig) -> list[tuple[int, float]]:
    name = measure_of(config)
    return [(int(entry["step"]), float(entry[name])) for entry in history if name in entry]
