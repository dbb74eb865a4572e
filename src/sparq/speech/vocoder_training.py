"""Training of the vocoder: mel, feature-matching and adversarial losses on short segments, resumable at any step.

The losses and their weights are HiFi-GAN's (Kong et al. 2020, section 2.4), the optimiser the paper's (E.3: Adam,
8e-4). Two things serve machines without a GPU: the generator may learn from the mel loss alone at first, which costs
less than half of a full step and is enough to become intelligible, and that loss may listen through several windows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from sparq.artifacts import fingerprint, require_match, write_text
from sparq.device import usual_device
from sparq.errors import UserError
from sparq.speech.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from sparq.speech.duration import DurationPredictor, fit_durations
from sparq.speech.generator import UnitGenerator, VocoderConfig
from sparq.speech.mel import MelLoss
from sparq.speech.pitch import measure_pitch
from sparq.speech.speaker import SpeakerEncoder
from sparq.speech.speaker_table import SpeakerTable
from sparq.speech.training_segments import Recording, Segments
from sparq.speech.vocoder import Vocoder

_CHECKPOINT = "checkpoint.pt"
_LOG = "log.jsonl"


@dataclasses.dataclass(frozen=True)
class VocoderTraining:
    """How a vocoder is trained; the defaults are the paper's and HiFi-GAN's.

    Attributes:
        steps: optimiser steps in all.
        warmup_steps: first steps in which the mel loss is alone and the discriminators sleep.
        batch: segments per step.
        segment: frames (units) per segment.
        learning_rate: Adam's, at step 0.
        betas: Adam's.
        decay: factor on the learning rate over every 1000 steps (exponential, continuous).
        mel_weight: weight of the mel loss beside the adversarial one (HiFi-GAN's λ_mel).
        pitch_weight: weight of the error of log pitch, where the vocoder has a source and a filter.
        feature_weight: weight of the feature-matching loss (HiFi-GAN's λ_fm).
        mel_windows: windows of the mel loss in samples.
        clip: largest norm of the generator's gradient.
        duration_steps: steps of the duration predictor, before all else.
        checkpoint_steps: steps between checkpoints.
        log_steps: steps over which a line of the log averages.
        balance: a speaker's share of the segments is the length of their recordings to this power.
        seed: of weights and of the choice of segments.
        discriminators: sizes of the discriminators.
    """

    steps: int = 400_000
    warmup_steps: int = 0
    batch: int = 64
    segment: int = 28
    learning_rate: float = 8e-4
    betas: tuple[float, float] = (0.8, 0.99)
    decay: float = 0.995
    mel_weight: float = 45.0
    pitch_weight: float = 45.0
    feature_weight: float = 2.0
    mel_windows: tuple[int, ...] = (1024,)
    clip: float = 1000.0
    duration_steps: int = 1500
    checkpoint_steps: int = 1000
    log_steps: int = 50
    balance: float = 0.5
    seed: int = 0
    discriminators: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "segment", "checkpoint_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"vocoder training {name}={getattr(self, name)}: expected a positive number")
        if not 0 < self.decay <= 1:
            raise UserError(f"vocoder training decay={self.decay}: expected more than 0 and at most 1")

    @classmethod
    def preset(cls, name: str, steps: int | None = None) -> VocoderTraining:
        """Give what trains the vocoder configuration of this name: ``paper``, ``paper-384``, or ``small``.

        The small one is made for one CPU core (0.22 s a step) and is intelligible after the mel loss alone; more steps
        than 6,250 wake the discriminators, at 0.53 s a step. However many they are, its learning rate falls to a sixth.

        Args:
            name: of the preset.
            steps: optimiser steps; None for the preset's.

        Raises:
            UserError: unknown name.
        """
        if name in ("paper", "paper-384"):
            return cls() if steps is None else cls(steps=steps)
        if name != "small":
            raise UserError(f"unknown vocoder preset {name!r}: expected one of paper, paper-384, small")
        steps = steps or 6_250
        return cls(
            steps=steps,
            warmup_steps=6_250,
            batch=8,
            segment=32,
            decay=max((1 / 6) ** (1000 / steps), sys.float_info.min),  # of two steps or one it would be 0
            mel_windows=(256, 512, 1024, 2048),
            clip=100.0,
            checkpoint_steps=250,
            discriminators=DiscriminatorConfig.small(),
        )


class VocoderTrainer:
    """Generator, discriminators and their optimisers, with the step they are at.

    Every step draws its segments from a generator seeded by the step's number, so a run that was killed goes on
    from its last checkpoint exactly as if nothing had happened.

    Args:
        recordings: speech of one voice, or of many.
        config: the vocoder's shape.
        training: how to train it.
        folder: where ``checkpoint.pt`` and ``log.jsonl`` are kept; a checkpoint found there is gone on from.
        device: where to compute; None takes a GPU if there is one.
        encoder: what tells the speakers apart, for a vocoder of many; its dimension is the configuration's speaker_dim.
        start: a trained vocoder to begin with, of this shape or of the same with one voice; None begins anew.

    Raises:
        UserError: no recording is as long as a segment, a unit is out of range, the checkpoint is another vocoder's, or
            speaker encoder and configuration, or the vocoder to start from, do not fit.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        config: VocoderConfig,
        training: VocoderTraining,
        folder: Path,
        device: str | None = None,
        encoder: SpeakerEncoder | None = None,
        start: Vocoder | None = None,
    ) -> None:
        if config.speaker_dim != (0 if encoder is None else encoder.dimension):
            raise UserError(
                f"vocoder training: speaker_dim={config.speaker_dim}, but "
                + ("there is no speaker encoder" if encoder is None else f"{encoder.name} gives {encoder.dimension}")
            )
        if start is not None and start.voices is not None and encoder is None:
            raise UserError("the vocoder to start from: has voices (expected speaker_encoder, which tells them apart)")
        self.config, self.training, self.folder = config, training, Path(folder)
        self.segments = Segments(recordings, config, training.segment, training.seed, training.balance)
        self.step = 0
        self.device = usual_device() if device is None else torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.generator = UnitGenerator(config)
            if start is not None:
                self.generator.start_from(start.generator)
            self.generator.to(self.device)
            self.discriminators = Discriminators(training.discriminators).to(self.device)
        self.mel = MelLoss(config.rate, training.mel_windows).to(self.device)
        rate, betas = training.learning_rate, training.betas
        self._generator_optimiser = torch.optim.Adam(self.generator.parameters(), rate, betas)
        self._discriminator_optimiser = torch.optim.Adam(self.discriminators.parameters(), rate, betas)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.voices: SpeakerTable | None = None
        if encoder is not None:
            started = None if start is None else start.voices
            self.voices = self.segments.embed(encoder, self.folder, started)
        if (self.folder / _CHECKPOINT).is_file():
            self._load_checkpoint()
        else:
            (self.folder / _LOG).unlink(missing_ok=True)
            self.durations = self._fit_durations(start)
            self.save_checkpoint()  # a kill before the first of the training does not cost the durations

    def _fit_durations(self, start: Vocoder | None) -> DurationPredictor:
        steps = self.training.duration_steps
        known = None if start is None else start.duration_predictor
        alike = known is not None and (known.speaker is None) == (self.config.speaker_dim == 0)
        with _progress("durations", "steps") as progress:
            bar = progress.add_task("", total=steps)
            return fit_durations(
                [recording.units for recording in self.segments.recordings],
                self.config.units,
                speakers=self.segments.embeddings,
                steps=steps,
                seed=self.training.seed,
                start=known if alike else None,
                report=lambda step: progress.update(bar, completed=step),
            )

    def _batch(self) -> tuple[Tensor, Tensor, Tensor | None]:
        units, waves, speakers = self.segments.draw(self.step, self.training.batch)
        speaker = None if speakers is None else torch.from_numpy(speakers).to(self.device)
        return torch.from_numpy(units).to(self.device), torch.from_numpy(waves).to(self.device), speaker

    def train_step(self) -> dict[str, float]:
        """Take one step and say its losses."""
        training = self.training
        rate = training.learning_rate * training.decay ** (self.step / 1000)
        for optimiser in (self._generator_optimiser, self._discriminator_optimiser):
            for group in optimiser.param_groups:
                group["lr"] = rate
        units, real, speaker = self._batch()
        losses: dict[str, Tensor] = {}
        if self.config.filter_size:
            pitch, voiced = measure_pitch(real, self.config.rate, self.config.filter_size // 4)
            generated, log_pitch = self.generator.forced(units, pitch, voiced, speaker)
            error = (log_pitch - pitch.log()).abs() * voiced
            losses["pitch"] = error.sum() / voiced.sum().clamp(min=1)
        else:
            generated = self.generator(units, speaker=speaker)
        losses["mel"] = self.mel(generated, real)
        total = training.mel_weight * losses["mel"] + training.pitch_weight * losses.get("pitch", 0.0)
        if self.step >= training.warmup_steps:
            losses["discriminator"] = discriminator_loss(
                self.discriminators(real), self.discriminators(generated.detach())
            )
            self._discriminator_optimiser.zero_grad()
            losses["discriminator"].backward()
            self._discriminator_optimiser.step()
            self.discriminators.requires_grad_(requires_grad=False)
            with torch.no_grad():
                heard_real = self.discriminators(real)
            heard = self.discriminators(generated)
            self.discriminators.requires_grad_(requires_grad=True)
            losses["feature"] = feature_loss(heard_real, heard)
            losses["adversarial"] = adversarial_loss(heard)
            total = total + losses["adversarial"] + training.feature_weight * losses["feature"]
        self._generator_optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), training.clip)
        self._generator_optimiser.step()
        self.step += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def run(self) -> None:
        """Train to the last step, writing the log and checkpoints."""
        with _progress("vocoder", "steps, {task.fields[rate]:.1f}/s, mel {task.fields[mel]:.3f}") as progress:
            bar = progress.add_task("", total=self.training.steps, completed=self.step, rate=0.0, mel=0.0)
            lines: list[dict[str, float]] = []
            since = time.perf_counter()
            while self.step < self.training.steps:
                lines.append(self.train_step())
                rate = len(lines) / (time.perf_counter() - since)
                mel = float(np.mean([line["mel"] for line in lines]))
                progress.update(bar, completed=self.step, rate=rate, mel=mel)
                if self.step % self.training.log_steps == 0:
                    # Lines from before the discriminators woke have no adversarial losses; the means leave them out.
                    means = {name: float(np.mean([line[name] for line in lines if name in line])) for name in lines[-1]}
                    self._log({"step": self.step, **means, "steps_per_second": round(rate, 3)})
                    lines, since = [], time.perf_counter()
                if self.step % self.training.checkpoint_steps == 0 or self.step == self.training.steps:
                    self.save_checkpoint()

    def vocoder(self, codebook_meaning: str) -> Vocoder:
        """Give the vocoder as it is now, for units of codebooks with this meaning."""
        return Vocoder(self.generator, self.durations.to(self.device), codebook_meaning, self.voices)

    def _log(self, line: dict[str, float]) -> None:
        with (self.folder / _LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _modules(self) -> dict[str, torch.nn.Module | torch.optim.Optimizer]:
        return {
            "generator": self.generator,
            "discriminators": self.discriminators,
            "generator_optimiser": self._generator_optimiser,
            "discriminator_optimiser": self._discriminator_optimiser,
        }

    def save_checkpoint(self) -> None:
        """Write everything that going on needs, whole or not at all."""
        state = {name: part.state_dict() for name, part in self._modules().items()}
        state["durations"] = self.durations.state_dict()
        path = self.folder / _CHECKPOINT
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        torch.save({"step": self.step, "config": fingerprint(self.config), **state}, temporary)
        temporary.replace(path)

    def _load_checkpoint(self) -> None:
        path = self.folder / _CHECKPOINT
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["config"] != fingerprint(self.config):
            raise UserError(f"{path}: is the checkpoint of another vocoder configuration; choose another folder")
        for name, part in self._modules().items():
            part.load_state_dict(state[name])
        self.durations = DurationPredictor(self.config.units, speaker_dim=self.config.speaker_dim)
        self.durations.load_state_dict(state["durations"])
        self.durations.eval()
        self.step = state["step"]
        # What was logged after the checkpoint is about to be done again.
        log = self.folder / _LOG
        if log.is_file():
            lines = log.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            write_text(log, "".join(line + "\n" for line in kept))


def _progress(name: str, told: str) -> Progress:
    """Give a bar on standard error, and behind it what is told."""
    columns = TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn(told), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


def train_vocoder(
    recordings: Sequence[Recording],
    folder: Path,
    codebook_meaning: str,
    config: VocoderConfig,
    training: VocoderTraining,
    device: str | None = None,
    encoder: SpeakerEncoder | None = None,
    start: Vocoder | None = None,
) -> Vocoder:
    """Train a vocoder, or go on with the one whose checkpoint is in ``folder``, and return it.

    Arguments are those of ``VocoderTrainer``; ``start`` is of the same codebook. Its voices keep their names beside
    those of the recordings, whose longest speaker is the default.

    Raises:
        ArtifactMismatchError: ``start`` is of another codebook, or another speaker encoder told its voices apart.
    """
    if start is not None:
        require_match("the vocoder to start from (its codebook)", start.codebook, codebook_meaning)
    trainer = VocoderTrainer(recordings, config, training, folder, device, encoder, start)
    trainer.run()
    return trainer.vocoder(codebook_meaning)
