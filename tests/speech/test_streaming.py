"""Streamed chunks equal what is spoken at once, and nothing is waited for that is not needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparq.errors import UserError
from sparq.speech.duration import DurationPredictor
from sparq.speech.generator import UnitGenerator, VocoderConfig, fuse_weight_norm
from sparq.speech.source_filter import REACH, Noise, SourceFilter
from sparq.speech.speaker_table import SpeakerTable
from sparq.speech.streaming import look_ahead, stream_frames, stream_waveform
from sparq.speech.vocoder import Vocoder

UNITS, DIMENSION = 12, 4
SHAPE = {"units": UNITS, "embedding": 6, "channels": 16, "resblock_kernels": (3, 5), "resblock_dilations": (1, 2)}
CONFIGS = {
    # 2 · 3 steps of 16 samples a unit: the four steps that a sample hears are less than a unit
    "source-filter": VocoderConfig(**SHAPE, upsample_rates=(3, 2), upsample_kernels=(7, 4), filter_size=64),
    # 2 steps a unit, so that a sample hears two units; a hop of 10, which is no multiple of torch's block of 16
    "few steps": VocoderConfig(**SHAPE, upsample_rates=(2,), upsample_kernels=(2,), filter_size=40),
    "hifi-gan": VocoderConfig(**SHAPE, upsample_rates=(5, 4, 2), upsample_kernels=(11, 8, 4)),
    "many voices": VocoderConfig(
        **SHAPE, upsample_rates=(3, 2), upsample_kernels=(7, 4), filter_size=64, speaker_dim=DIMENSION
    ),
}


def random_generator(config: VocoderConfig) -> UnitGenerator:
    torch.manual_seed(0)
    generator = UnitGenerator(config).double().eval()
    fuse_weight_norm(generator)
    for module in generator.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            module.weight.data.normal_(0, 1.2 / module.weight[0].numel() ** 0.5)  # far from the same for every unit
    for film in generator.films:
        film.weight.data.normal_(0, 0.1)
    return generator.requires_grad_(requires_grad=False)


def random_predictor(speaker_dim: int = 0) -> DurationPredictor:
    torch.manual_seed(1)
    predictor = DurationPredictor(UNITS, width=8, speaker_dim=speaker_dim).double().eval()
    predictor.last.weight.data.mul_(4)
    predictor.last.bias.data.fill_(1.5)
    if predictor.speaker is not None:
        predictor.speaker.weight.data.normal_(0, 0.2)
    return predictor.requires_grad_(requires_grad=False)


def speaker_of(config: VocoderConfig) -> torch.Tensor | None:
    return torch.randn(1, DIMENSION, dtype=torch.float64) if config.speaker_dim else None


@pytest.mark.parametrize("name", CONFIGS)
def test_all_chunks_together_are_the_whole(name):
    generator = random_generator(CONFIGS[name])
    frames = torch.randint(0, UNITS, (2 * look_ahead(generator) + 5,))
    speaker = speaker_of(CONFIGS[name])
    whole = generator(frames[None], speaker=speaker)[0]
    assert whole.std() > 0.01
    hop = CONFIGS[name].hop
    for chunk in range(1, len(frames) + 2):
        chunks = list(stream_waveform(generator, frames.tolist(), chunk, speaker))
        assert {len(part) for part in chunks[:-1]} <= {chunk * hop}
        torch.testing.assert_close(torch.cat(chunks), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_shorter_than_its_context_is_whole_too(name, count):
    generator = random_generator(CONFIGS[name])
    frames, speaker = torch.randint(0, UNITS, (count,)), speaker_of(CONFIGS[name])
    streamed = torch.cat(list(stream_waveform(generator, frames.tolist(), 1, speaker)))
    torch.testing.assert_close(streamed, generator(frames[None], speaker=speaker)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [*CONFIGS, "paper", "small"])
def test_the_context_of_a_feature_is_exactly_what_it_depends_on(name):
    config = CONFIGS.get(name) or VocoderConfig.preset(name, channels=32, embedding=4)
    generator = random_generator(config)
    middle = generator.context + 1
    embedded = torch.randn(1, 2 * middle + 1, config.embedding, dtype=torch.float64, requires_grad=True)
    generator.embedding = torch.nn.Identity()  # units as their embeddings, which have a gradient
    features, _ = generator.features(embedded, None, speaker_of(config))
    steps = features.shape[2] // (2 * middle + 1)
    features[..., middle * steps : (middle + 1) * steps].sum().backward()
    felt = embedded.grad.abs().sum(-1)[0] > 0
    assert felt.tolist() == [False, *[True] * (2 * generator.context + 1), False]


def test_a_sample_of_the_source_filter_hears_no_further_than_its_reach():
    filters = SourceFilter(32, 16000).double()
    pitch = torch.full((1, 20), 150.0, dtype=torch.float64)
    magnitude = (torch.randn(1, 34, 20, dtype=torch.float64) - 4).requires_grad_()
    noise = torch.randn(160, dtype=torch.float64)
    filters(magnitude, pitch, noise=noise)[0, 80:88].sum().backward()
    felt = (magnitude.grad.abs().sum(1)[0] > 0).nonzero()[:, 0]
    assert [int(felt.min()), int(felt.max())] == [10 - REACH // 2, 10 + REACH // 2]
    part = filters(magnitude[..., 3:], pitch[:, 3:], noise=noise[24:], cycles=3 * 8 * 150 / 16000)
    whole = filters(magnitude, pitch, noise=noise)
    torch.testing.assert_close(part[:, REACH * 8 :], whole[:, (3 + REACH) * 8 :], rtol=0, atol=1e-9)
    assert not torch.allclose(part[:, : REACH * 8], whole[:, 24 : (3 + REACH) * 8])


@pytest.mark.parametrize("sizes", [(1, 2, 3, 40, 1, 17), (64, 64), (16, 5)])
def test_noise_is_the_same_however_much_is_taken_at_a_time(sizes):
    noise = Noise()
    parts = torch.cat([noise.take(size) for size in sizes])
    torch.testing.assert_close(parts, Noise().take(sum(sizes)), rtol=0, atol=0)
    # What vocoders that were trained before there was streaming have always spoken with.
    whole = torch.randn(640, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Noise().take(640), whole, rtol=0, atol=0)


@pytest.mark.parametrize("speaker_dim", [0, DIMENSION])
@pytest.mark.parametrize("count", [1, 4, 5, 30])
def test_streamed_durations_are_those_of_the_whole(speaker_dim, count):
    predictor = random_predictor(speaker_dim)
    units = torch.randint(0, UNITS, (count,))
    speaker = torch.randn(1, DIMENSION, dtype=torch.float64) if speaker_dim else None
    durations = predictor.durations(units[None], torch.tensor([count]), speaker)[0]
    assert count < 30 or len(set(durations.tolist())) > 2
    expected = np.repeat(units.numpy(), durations.numpy()).tolist()
    assert list(stream_frames(predictor, units.tolist(), speaker)) == expected


def test_no_more_units_are_asked_for_than_a_chunk_needs():
    generator = random_generator(CONFIGS["source-filter"])
    taken = []
    endless = (taken.append(0) or len(taken) % UNITS for _ in iter(int, 1))
    chunks = stream_waveform(generator, endless, 3)
    for count in (1, 2, 3):
        next(chunks)
        assert len(taken) == 3 * count + look_ahead(generator)
    taken.clear()
    frames = stream_frames(random_predictor(), (taken.append(0) or len(taken) % UNITS for _ in iter(int, 1)))
    next(frames)
    assert len(taken) == 1 + random_predictor().context


@pytest.fixture(scope="module")
def vocoder() -> Vocoder:
    config = CONFIGS["many voices"]
    vectors = np.eye(2, DIMENSION, dtype=np.float32)
    table = SpeakerTable(("ann", "bob"), vectors, "bob", "nobody", "f00d")
    return Vocoder(random_generator(config), random_predictor(DIMENSION), "c0debook", table)


@pytest.mark.parametrize("merged", [True, False])
def test_a_vocoder_streams_in_a_voice(vocoder, merged):
    units = np.random.default_rng(0).integers(0, UNITS, 40).tolist()
    for voice in ("ann", None):
        speaker = vocoder.embedding(voice)
        whole = vocoder.synthesize([units], merged=merged, speaker=speaker)[0]
        chunks = list(vocoder.stream(iter(units), merged=merged, speaker=speaker, chunk=7))
        assert len(chunks) > 4
        np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-6)


def test_what_cannot_be_streamed_is_refused(vocoder):
    with pytest.raises(UserError, match="no units"):
        vocoder.stream([], merged=False)
    with pytest.raises(UserError, match="chunk: 0"):
        vocoder.stream([1], merged=False, chunk=0)
    with pytest.raises(UserError, match=f"unit {UNITS}"):
        list(vocoder.stream([1, UNITS], merged=False))
