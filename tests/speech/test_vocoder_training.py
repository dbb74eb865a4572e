"""Losses, discriminators, pitch and mel; a run that is killed goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from sparq.artifacts import ArtifactMismatchError
from sparq.errors import UserError
from sparq.speech.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    PeriodDiscriminator,
    ScaleDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
)
from sparq.speech.generator import VocoderConfig
from sparq.speech.mel import LogMel, MelLoss
from sparq.speech.pitch import measure_pitch, pulse_train
from sparq.speech.speaker import SpeakerEncoder
from sparq.speech.training_segments import Recording, Segments
from sparq.speech.vocoder import Vocoder
from sparq.speech.vocoder_training import VocoderTrainer, VocoderTraining, train_vocoder

HOP = 64
SMALL = VocoderConfig(
    units=4,
    embedding=4,
    channels=16,
    upsample_rates=(2, 2),
    upsample_kernels=(4, 4),
    resblock_kernels=(3,),
    resblock_dilations=(1,),
    filter_size=64,
)
HIFIGAN = dataclasses.replace(SMALL, upsample_rates=(8, 8), upsample_kernels=(16, 16), filter_size=0)
TRAINING = VocoderTraining(
    steps=6,
    warmup_steps=3,
    batch=2,
    segment=64,
    mel_windows=(256,),
    duration_steps=2,
    checkpoint_steps=2,
    log_steps=1,
    discriminators=DiscriminatorConfig(periods=(2, 3), period_channels=(4, 4), scales=2, scale_channels=16),
)


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    """Four sounds, one for each unit: tones of 150 and 250 Hz, noise, silence."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(3):
        units = np.repeat(random.integers(0, 4, 12), 20)
        time = np.arange(len(units) * HOP) / 16000
        unit = np.repeat(units, HOP)
        tones = [sum(np.sin(2 * np.pi * f * k * time) for k in range(1, 8)) * 0.05 for f in (150, 250)]
        noise = random.normal(size=len(time)) * 0.05
        made.append(Recording(np.choose(unit, [*tones, noise, 0 * noise]).astype(np.float32), units))
    return made


def test_log_mel_equals_the_one_of_transformers():
    wave = np.random.default_rng(0).normal(size=4096).astype(np.float32) * 0.1
    mine = LogMel(16000)(torch.from_numpy(wave)[None])[0].numpy()
    filters = mel_filter_bank(513, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    padded = np.pad(wave, 384, mode="reflect")
    theirs = spectrogram(
        padded,
        window_function(1024, "hann"),
        1024,
        256,
        power=1.0,
        center=False,
        mel_filters=filters,
        mel_floor=1e-5,
        log_mel="log",
    )
    np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_mel_loss_is_zero_for_the_same_and_grows_with_the_difference():
    wave = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0)) * 0.1
    loss = MelLoss(16000, (256, 1024))
    assert loss(wave, wave) == 0
    assert 0 < loss(wave * 1.1, wave) < loss(wave * 2, wave)
    assert loss(wave * 2, wave).item() == pytest.approx(np.log(2), rel=1e-3)


@pytest.mark.parametrize("hertz", [85.0, 150.0, 212.5, 340.0])
def test_pitch_of_pulses_is_measured(hertz):
    pulses = pulse_train(torch.full((1, 100), hertz), 16000, 64) * 0.1
    pitch, voiced = measure_pitch(pulses, 16000, 64)
    assert pitch.shape == voiced.shape == (1, 100)
    assert voiced[:, 8:-16].all()
    torch.testing.assert_close(pitch[:, 8:-16], torch.full((1, 76), hertz), rtol=0.02, atol=0)


def test_noise_and_silence_are_unvoiced():
    noise = torch.randn(1, 6400, generator=torch.Generator().manual_seed(0)) * 0.1
    assert measure_pitch(noise, 16000, 64)[1].float().mean() < 0.05
    assert not measure_pitch(torch.zeros(1, 6400), 16000, 64)[1].any()


def test_pulses_are_the_sum_of_their_harmonics():
    pitch = torch.full((1, 10), 3000.0, dtype=torch.float64)
    phase = 2 * np.pi * 3000 / 16000 * torch.arange(1, 641, dtype=torch.float64)
    harmonics = torch.cos(phase) + torch.cos(2 * phase)  # 6000 Hz is the last below 8000
    torch.testing.assert_close(pulse_train(pitch, 16000, 64)[0], harmonics, rtol=1e-6, atol=1e-6)


def test_the_default_discriminators_are_hifigans():
    model = Discriminators(DiscriminatorConfig())
    parameters = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("original0"))
    assert [m.period for m in model.members[:5]] == [2, 3, 5, 7, 11]
    # 41.1 M of period and 29.6 M of scale discriminators, as in the public implementation (its g vectors left out)
    assert parameters == pytest.approx(70.7e6, rel=0.01)


def test_a_period_discriminator_never_mixes_columns():
    model = PeriodDiscriminator(3, (4, 4))
    wave = torch.randn(1, 300)
    changed = wave.clone()
    changed[:, 1::3] += 1
    difference = (model(wave)[0] - model(changed)[0]).abs().sum(dim=(0, 1, 2))
    assert difference[1] > 0
    assert difference[0] == difference[2] == 0


def test_scale_discriminators_hear_less_and_less():
    wave = torch.randn(1, 4096)
    frames = [ScaleDiscriminator(halvings, 16).eval()(wave)[0].shape[-1] for halvings in range(3)]
    assert frames[0] == 4096
    assert frames[1] == pytest.approx(2048, abs=2)
    assert frames[2] == pytest.approx(1024, abs=3)


def test_losses_are_those_of_the_equations():
    real = [[torch.tensor([2.0]), torch.tensor([0.75])]]
    made = [[torch.tensor([0.5]), torch.tensor([0.25])]]
    assert discriminator_loss(real, made).item() == pytest.approx(0.25**2 + 0.25**2)
    assert adversarial_loss(made).item() == pytest.approx(0.75**2)
    assert feature_loss(real, made).item() == pytest.approx(1.5)


@pytest.mark.parametrize("config", [SMALL, HIFIGAN], ids=["source-filter", "hifigan"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(config, recordings, tmp_path):
    whole = VocoderTrainer(recordings, config, TRAINING, tmp_path / "whole")
    whole.run()
    part = VocoderTrainer(recordings, config, TRAINING, tmp_path / "part")
    for _ in range(4):
        line = part.train_step()
        part._log({"step": part.step, **line})
        if part.step == 3:
            part.save_checkpoint()
    del part  # killed after step 4, the last checkpoint at 3: step 4 is done again and logged once
    resumed = VocoderTrainer(recordings, config, TRAINING, tmp_path / "part")
    assert resumed.step == 3
    resumed.run()
    for name, value in whole.generator.state_dict().items():
        torch.testing.assert_close(resumed.generator.state_dict()[name], value, rtol=0, atol=0)
    logs = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "part")
    ]
    for a, b in zip(*logs, strict=True):
        assert {k: v for k, v in a.items() if k != "steps_per_second"} == {
            k: v for k, v in b.items() if k != "steps_per_second"
        }
    assert "adversarial" not in logs[0][2]
    assert {"mel", "feature", "adversarial", "discriminator"} <= set(logs[0][3])
    assert sorted(p.name for p in (tmp_path / "part").iterdir()) == ["checkpoint.pt", "log.jsonl"]


def test_durations_are_told_of_and_fitted_once_even_if_the_training_is_killed_at_once(
    recordings, tmp_path, monkeypatch, capfd
):
    first = VocoderTrainer(recordings, SMALL, TRAINING, tmp_path)
    told = capfd.readouterr().err.split()
    assert (told[0], told[-3:-1]) == ("durations", ["2/2", "steps"])
    monkeypatch.setattr("sparq.speech.vocoder_training.fit_durations", lambda *_, **__: pytest.fail("fitted again"))
    again = VocoderTrainer(recordings, SMALL, TRAINING, tmp_path)
    assert again.step == 0
    for name, value in first.durations.state_dict().items():
        torch.testing.assert_close(again.durations.state_dict()[name], value, rtol=0, atol=0)
    for trainer in (first, again):
        trainer.train_step()
    for name, value in first.generator.state_dict().items():
        torch.testing.assert_close(again.generator.state_dict()[name], value, rtol=0, atol=0)


def test_training_learns_the_sounds_of_the_units(recordings, tmp_path):
    training = dataclasses.replace(TRAINING, steps=120, warmup_steps=1000, learning_rate=4e-3, checkpoint_steps=1000)
    vocoder = train_vocoder(recordings, tmp_path, "c0debook", SMALL, training)
    assert vocoder.codebook == "c0debook"
    spoken = vocoder.synthesize([[unit] * 60 for unit in range(4)], merged=False)
    middle = torch.from_numpy(np.stack([wave[640:-640] for wave in spoken]))
    pitch, voiced = measure_pitch(middle, 16000, 64)
    inner = slice(8, -16)
    assert pitch[0, inner].median().item() == pytest.approx(150, rel=0.1)
    assert pitch[1, inner].median().item() == pytest.approx(250, rel=0.1)
    assert voiced[:2, inner].all()
    assert middle[3].std() < 0.5 * middle[:3].std(dim=1).min()


class ByPitch(SpeakerEncoder):
    """Tells speakers apart by the pitch of their recording alone."""

    name, dimension, fingerprint = "by-pitch", 2, "f00d"

    def __init__(self):
        self.heard = 0

    def _windows(self, waveform):
        self.heard += 1
        return [waveform]

    def _forward(self, windows):
        pitch, voiced = measure_pitch(torch.from_numpy(windows), 16000, HOP)
        return np.stack([[1.0, 0.0] if p[v].mean() < 200 else [0.0, 1.0] for p, v in zip(pitch, voiced, strict=True)])


@pytest.fixture(scope="module")
def two_speakers() -> list[Recording]:
    """The same units by two speakers, whose pitches are 130 and 260 Hz; the high one says little, and slowly."""
    made = []
    for index, (speaker, pitch, frames) in enumerate([("low", 130, 10), ("low", 130, 10), ("high", 260, 20)]):
        random = np.random.default_rng(index)
        units = np.repeat(np.arange(12) % 4, frames)
        time = np.arange(len(units) * HOP) / 16000
        tone = sum(np.sin(2 * np.pi * pitch * k * time) for k in range(1, 8)) * 0.05
        noise = random.normal(size=len(time)) * 0.002
        made.append(Recording((tone + noise).astype(np.float32), units, speaker))
    return made


MANY = dataclasses.replace(SMALL, speaker_dim=2)


def test_one_vocoder_learns_two_voices(two_speakers, tmp_path):
    training = dataclasses.replace(
        TRAINING, steps=110, warmup_steps=1000, learning_rate=4e-3, checkpoint_steps=1000, duration_steps=250
    )
    vocoder = train_vocoder(two_speakers, tmp_path, "c0debook", MANY, training, encoder=ByPitch())
    assert vocoder.voices.names == ("high", "low")
    units = np.repeat([0, 1, 2, 3], 16)
    for name, hertz, frames in (("low", 130, 10), ("high", 260, 20)):
        speaker = vocoder.embedding(name)
        wave = vocoder.synthesize([units], merged=False, speaker=speaker)[0]
        pitch, voiced = measure_pitch(torch.from_numpy(wave)[None], 16000, HOP)
        assert pitch[voiced].median().item() == pytest.approx(hertz, rel=0.1)
        assert np.median(vocoder.durations([np.arange(12) % 4], speaker)[0]) == pytest.approx(frames, abs=4)


def test_a_killed_run_of_many_voices_goes_on_and_does_not_embed_again(two_speakers, tmp_path):
    whole = VocoderTrainer(two_speakers, MANY, TRAINING, tmp_path / "whole", encoder=ByPitch())
    whole.run()
    part = VocoderTrainer(two_speakers, MANY, TRAINING, tmp_path / "part", encoder=ByPitch())
    part.train_step()
    part.save_checkpoint()
    encoder = ByPitch()
    resumed = VocoderTrainer(two_speakers, MANY, TRAINING, tmp_path / "part", encoder=encoder)
    assert (resumed.step, encoder.heard) == (1, 0)
    resumed.run()
    for module in ("generator", "durations"):
        for name, value in getattr(whole, module).state_dict().items():
            torch.testing.assert_close(getattr(resumed, module).state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(UserError, match="is of 3 recordings, not 2"):
        VocoderTrainer(two_speakers[:2], MANY, TRAINING, tmp_path / "part", encoder=encoder)


@pytest.mark.parametrize("balance", [0, 0.5, 1])
def test_speakers_are_drawn_by_a_power_of_how_long_they_speak(two_speakers, tmp_path, balance):
    segments = Segments(two_speakers, MANY, TRAINING.segment, 0, balance)
    segments.embed(ByPitch(), tmp_path)
    low, high = segments.chances[:2].sum(), segments.chances[2]
    starts = [len(r.units) - TRAINING.segment + 1 for r in two_speakers]
    assert low / high == pytest.approx(((starts[0] + starts[1]) / starts[2]) ** balance)
    units, waves, speakers = segments.draw(3, 200)
    assert (units.shape, waves.shape, speakers.shape) == ((200, 64), (200, 64 * HOP), (200, 2))
    assert speakers[:, 1].mean() == pytest.approx(high, abs=0.1)
    np.testing.assert_array_equal(segments.draw(3, 200)[1], waves)
    assert not np.array_equal(segments.draw(4, 200)[1], waves)


def test_a_second_training_starts_from_what_the_first_has_learnt(two_speakers, tmp_path):
    training = dataclasses.replace(TRAINING, steps=1)
    first = train_vocoder(two_speakers[:2], tmp_path / "one", "c0debook", SMALL, training)
    more = VocoderTrainer(two_speakers, MANY, training, tmp_path / "many", encoder=ByPitch(), start=first)
    units = [[0, 1, 2, 3] * 8]
    np.testing.assert_allclose(
        more.vocoder("c0debook").synthesize(units, merged=False)[0],
        first.synthesize(units, merged=False)[0],
        atol=1e-4,
    )
    with pytest.raises(ArtifactMismatchError, match=r"start from \(its codebook\) was made for c0debook"):
        train_vocoder(two_speakers, tmp_path / "other", "other", SMALL, training, start=first)


def test_voices_that_a_second_training_does_not_hear_keep_their_names(two_speakers, tmp_path):
    training = dataclasses.replace(TRAINING, steps=1)
    first = train_vocoder(two_speakers, tmp_path / "one", "c0debook", MANY, training, encoder=ByPitch())
    mine = [dataclasses.replace(one, speaker=name) for one, name in zip(two_speakers, ("me", "low", "me"), strict=True)]
    more = train_vocoder(mine, tmp_path / "more", "c0debook", MANY, training, encoder=ByPitch(), start=first)
    assert (first.voices.names, first.voices.default) == (("high", "low"), "high")
    assert (more.voices.names, more.voices.default) == (("low", "me", "high"), "me")
    np.testing.assert_array_equal(more.embedding("high"), first.embedding("high"))
    more.save(tmp_path / "saved")
    assert Vocoder.load(tmp_path / "saved").voices.names == ("low", "me", "high")
    with pytest.raises(UserError, match=r"start from: has voices .expected speaker_encoder"):
        train_vocoder(mine, tmp_path / "a", "c0debook", SMALL, training, start=first)
    other = ByPitch()
    other.fingerprint = "another"
    with pytest.raises(ArtifactMismatchError, match=r"start from \(its speaker encoder\) was made for f00d"):
        train_vocoder(mine, tmp_path / "b", "c0debook", MANY, training, encoder=other, start=first)


def test_durations_are_learnt_on_from_those_of_the_vocoder_to_start_from(two_speakers, tmp_path):
    training = dataclasses.replace(TRAINING, steps=1, duration_steps=150)
    first = train_vocoder(two_speakers, tmp_path / "one", "c0debook", MANY, training, encoder=ByPitch())
    none = dataclasses.replace(training, duration_steps=0)
    again = train_vocoder(two_speakers, tmp_path / "two", "c0debook", MANY, none, encoder=ByPitch(), start=first)
    units = [np.arange(12) % 4]
    for name in ("low", "high"):
        np.testing.assert_allclose(
            again.durations(units, again.embedding(name))[0], first.durations(units, first.embedding(name))[0], atol=1
        )


def test_speaker_encoder_and_configuration_must_fit(two_speakers, tmp_path):
    with pytest.raises(UserError, match="speaker_dim=2, but there is no speaker encoder"):
        VocoderTrainer(two_speakers, MANY, TRAINING, tmp_path)
    with pytest.raises(UserError, match="speaker_dim=0, but by-pitch gives 2"):
        VocoderTrainer(two_speakers, SMALL, TRAINING, tmp_path, encoder=ByPitch())


def test_bad_data_and_other_checkpoints_are_refused(recordings, tmp_path):
    short = [Recording(r.waveform[: 10 * HOP], r.units) for r in recordings]
    with pytest.raises(UserError, match="64 frames of a segment"):
        VocoderTrainer(short, SMALL, TRAINING, tmp_path / "short")
    with pytest.raises(UserError, match="unit 3 is out of range"):
        VocoderTrainer(recordings, dataclasses.replace(SMALL, units=3), TRAINING, tmp_path / "range")
    VocoderTrainer(recordings, SMALL, TRAINING, tmp_path / "run").save_checkpoint()
    with pytest.raises(UserError, match="another vocoder configuration"):
        VocoderTrainer(recordings, HIFIGAN, TRAINING, tmp_path / "run")
    with pytest.raises(UserError, match="steps=0"):
        VocoderTraining(steps=0)


@pytest.mark.parametrize("steps", [500, 20_000])
def test_however_long_the_small_training_its_rate_falls_as_far(steps):
    training = VocoderTraining.preset("small", steps)
    assert training.steps == steps
    assert training.decay ** (steps / 1000) == pytest.approx(1 / 6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_small_training_may_be_as_short_as_one_step(steps):
    training = VocoderTraining.preset("small", steps)
    assert 1 / 6 <= training.decay ** ((steps - 1) / 1000) <= 1
