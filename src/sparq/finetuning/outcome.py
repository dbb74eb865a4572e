"""What came of a fine-tuning: every number of it, the table that is shown, and the card that goes with the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparq.assets import shipped_names
from sparq.errors import UserError
from sparq.finetuning.scores import Scores
from sparq.language.card import Card

SHIPPED_NOTE = (
    "They learnt from LJ Speech text (public domain), LibriTTS and VCTK text (CC BY 4.0), the Kathleen recordings "
    "(CC0 1.0) and CMU AN4 (BSD-style)."
)
RIGHTS = "Whoever passes the model on needs the right to use the recordings and their transcripts in this way."
LIMITS = (
    "Measured on other sentences of the same speakers, room and microphone; other speakers are understood worse.",
    "It speaks with the voice of its base model; fine-tuning does not clone the voice of the recordings.",
    "A model that learnt a person's recordings and words may give some of them away: ask before you share it.",
)
MEASURES = {
    "wer": "word error rate %",
    "asr_loss": "ASR loss, nats a piece",
    "transcript_perplexity": "perplexity of the transcripts",
    "text_perplexity": "perplexity of general text",
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a fine-tuning.

    Attributes:
        folder: name of the folder of recordings.
        minutes: of speech that was learnt from.
        learnt, held_out: utterances learnt from, and measured on.
        left_out: reason → how many recordings were not used.
        speakers: how many are named in the recordings.
        rehearsed: general sentences that were repeated; with 0 the transcripts alone rehearse text.
        base: name of the model that learnt.
        licence: of its weights, as far as it is known.
        settings: of the adaptation.
        beam: width of the beam search that was measured with.
        steps: taken.
        kept: the step that the weights are of; 0 for those of the base.
        training_minutes: that the steps took.
        before, after: what was measured.
        warnings: what the user should know.
        made: command, commit, machine and date.
    """

    folder: str
    minutes: float
    learnt: int
    held_out: int
    left_out: Mapping[str, int]
    speakers: int
    rehearsed: int
    base: str
    licence: str
    settings: Mapping[str, Any]
    beam: int
    steps: int
    kept: int
    training_minutes: float
    before: Scores
    after: Scores
    warnings: Sequence[str]
    made: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """Read what was written as JSON.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**told | {name: Scores(**told[name]) for name in ("before", "after")})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: missing or damaged ({error})") from error

    @property
    def measured(self) -> dict[str, tuple[float | None, float | None]]:
        """Name of each measure → before and after."""
        return {title: (getattr(self.before, name), getattr(self.after, name)) for name, title in MEASURES.items()}

    @property
    def method(self) -> str:
        """Name of the method, as the command takes it."""
        method = str(self.settings["method"])
        return f"{method}{self.settings['qlora']['bits']}" if method == "qlora" else method


def name_of(model: Path) -> str:
    """Name a SpeechLM by its folder; a run calls that "speechlm", in the folder of its variant."""
    parts = Path(model).resolve().parts
    return "/".join(parts[-2:]) if parts[-1] == "speechlm" else parts[-1]


def table(outcome: Outcome) -> str:
    """Show before and after, what was learnt from, and how long that took, in a few lines of text."""
    lines = [f"{'':30}{'before':>10}{'after':>10}"]
    for title, values in outcome.measured.items():
        lines.append(f"{title:30}" + "".join(f"{'–' if value is None else f'{value:.2f}':>10}" for value in values))
    lines.append(
        f"learnt from {outcome.minutes:.1f} minutes in {outcome.learnt} recordings, {outcome.held_out} held out"
        + "".join(f"; {count} left out ({reason})" for reason, count in outcome.left_out.items())
    )
    best = "nothing was better than the base model" if outcome.kept == 0 else f"the best was {outcome.kept}"
    early = outcome.settings["early_stopping"] is not None
    lines.append(
        f"{outcome.method}: {outcome.steps} of {outcome.settings['steps'] or 'any number of'} steps"
        f"{f' ({best})' if early else ''}, {outcome.training_minutes:.1f} minutes of training"
    )
    return "\n".join([*lines, *(f"warning: {warning}" for warning in outcome.warnings)])


def card_of(outcome: Outcome, name: str) -> Card:
    """Gather the facts of a card for the model of that name."""
    settings = outcome.settings
    rehearsed = f"{outcome.rehearsed} sentences of LJ Speech" if outcome.rehearsed else "the transcripts alone"
    data = {
        "recordings": outcome.folder,
        "learnt from": f"{outcome.minutes:.1f} minutes in {outcome.learnt} utterances",
        "held out": f"{outcome.held_out} utterances",
        "speakers named": outcome.speakers or "none",
        "text rehearsed": rehearsed,
        **{f"left out: {reason}": count for reason, count in outcome.left_out.items()},
    }
    adapters = {"rank": settings["lora"]["rank"], "alpha": settings["lora"]["alpha"]}
    method = {
        "base model": outcome.base,
        "method": outcome.method,
        **(adapters if settings["method"] != "full" else {}),
        **{key: settings[key] for key in ("optimizer", "learning_rate", "schedule", "batch_bins", "seed")},
        "task weights": ", ".join(f"{task} {weight:g}" for task, weight in settings["task_weights"].items()),
        "steps": f"{outcome.steps}, kept: {outcome.kept}",
        "training": f"{outcome.training_minutes:.1f} minutes",
    }
    stopped = settings["early_stopping"] is not None
    return Card(
        title=name,
        summary=(
            f"A SpeechLM that listens, speaks and writes: `{outcome.base}`, fine-tuned by SpARQ on "
            f"{outcome.minutes:.1f} minutes of recordings to understand them better."
        ),
        base=outcome.base,
        licence=outcome.licence,
        licence_note=" ".join([*([SHIPPED_NOTE] if outcome.base in shipped_names() else []), RIGHTS]),
        usage=("sparq transcribe --model FOLDER talk.wav", 'sparq speak --model FOLDER "Good morning." -o out.wav'),
        data=data,
        method=method,
        columns=("before", "after"),
        measured=outcome.measured,
        measured_on=(
            f"On {outcome.held_out} held-out recordings ({outcome.before.words} words), sentences that were not learnt "
            f"from, with a beam of {outcome.beam} before and after."
            + (" When to stop was chosen by the loss on them, so the numbers are a little too good." if stopped else "")
        ),
        limits=(*LIMITS, *outcome.warnings),
        made={name: value for name, value in outcome.made.items() if name != "command"},  # it names the user's folders
    )
