"""How a SpeechLM is fine-tuned where the user does not say: by the method, and by how much speech there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparq.config import AdaptationConfig
from sparq.schema import parse, with_overrides

PIECES_A_SECOND = 20  # of an example of ASR: pieces of a second of speech and of its text
MOST_PASSES, FEWEST_PASSES = 20.0, 3.0  # over the recordings ...
PASSED_SECONDS = 9_000.0  # ... that together are about so long, so that the time taken stays within bounds
SMALLEST_BINS, LARGEST_BINS, BATCHES_A_PASS = 1000, 4000, 10
EVALUATIONS, SHORTEST_INTERVAL = 20, 10
TASK_WEIGHTS = {"textlm": 0.2, "speechlm": 0.05, "asr": 0.6, "tts": 0.15}


def adaptation_config(method: str, seconds: float, settings: Sequence[str] = ()) -> AdaptationConfig:
    """Choose the settings of a fine-tuning.

    The task weights favour ASR, keep the units of the new voices likely (TTS weighs transcripts again), and rehearse
    text. Batches grow with the data, passes over it become fewer, and the loss of what is held out ends the training.

    Args:
        method: one of ``FINETUNING_METHODS``.
        seconds: of speech to learn from.
        settings: ``key=value`` that overrule the choice.

    Raises:
        UserError: an unknown key, or a value that it cannot have.
    """
    pieces = PIECES_A_SECOND * seconds
    bins = int(min(LARGEST_BINS, max(SMALLEST_BINS, pieces / BATCHES_A_PASS)))
    passes = min(MOST_PASSES, max(FEWEST_PASSES, PASSED_SECONDS / max(seconds, 1.0)))
    # A pass over what ASR learns from; the other tasks take their shares besides.
    steps = max(1, round(passes * pieces / TASK_WEIGHTS["asr"] / bins))
    chosen: dict[str, Any] = {
        "steps": steps,
        "batch_bins": bins,
        "save_every": max(SHORTEST_INTERVAL, round(steps / EVALUATIONS)),
        "early_stopping": {"patience": 6},
        "task_weights": dict(TASK_WEIGHTS),
        "schedule": "linear",
        **_by_method(method),
    }
    if any(setting.startswith("epochs=") for setting in settings):
        del chosen["steps"]  # the first end would win
    return parse(AdaptationConfig, with_overrides(chosen, settings), "sparq finetune")


def _by_method(method: str) -> dict[str, Any]:
    if method == "full":
        return {"method": "full", "learning_rate": 3e-4}
    adapters = {"lora": {"rank": 32, "alpha": 32}, "learning_rate": 1e-3}
    if method == "lora":
        return {"method": "lora", **adapters}
    return {"method": "qlora", "qlora": {"bits": int(method.removeprefix("qlora"))}, **adapters}
