"""The generator's shapes, its batch invariance, the vocoder's folder, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sparq.artifacts import read_manifest
from sparq.assets import shipped
from sparq.errors import UserError
from sparq.speech.duration import DurationPredictor, fit_durations
from sparq.speech.generator import UnitGenerator, VocoderConfig, fuse_weight_norm
from sparq.speech.speaker_table import SpeakerTable
from sparq.speech.units import merge_repeats
from sparq.speech.vocoder import Vocoder

TINY = {
    "paper": VocoderConfig.preset("paper", channels=32, embedding=8),
    "paper-384": VocoderConfig.preset("paper-384", channels=32, embedding=8),
    "small": VocoderConfig.preset("small", channels=32, embedding=8),
}


def tiny(name: str, **changes) -> UnitGenerator:
    torch.manual_seed(0)
    generator = UnitGenerator(dataclasses.replace(TINY[name], **changes))
    for parameter in generator.parameters():  # HiFi-GAN starts almost silent; tests want something to compare
        parameter.data.mul_(1.5)
    return generator


@pytest.fixture(scope="module")
def vocoder() -> Vocoder:
    return Vocoder(tiny("small"), DurationPredictor(200), codebook="c0debook")


def test_the_paper_preset_is_appendix_e3():
    config = VocoderConfig.preset("paper")
    assert (config.units, config.embedding, config.channels, config.hop, config.rate) == (200, 128, 512, 320, 16000)
    assert config.upsample_rates == (5, 4, 4, 2, 2)
    assert config.upsample_kernels == (11, 8, 8, 4, 4)
    parameters = sum(p.numel() for p in _fused(UnitGenerator(config)).parameters())
    # HiFi-GAN V1 without its mel input has about 13.4 M at these rates
    assert 12.5e6 < parameters < 14e6


def test_the_small_preset_fits_three_megabytes_in_half_precision():
    config = VocoderConfig.preset("small")
    parts = (_fused(UnitGenerator(config)), DurationPredictor(config.units))
    assert sum(p.numel() for part in parts for p in part.parameters()) * 2 <= 3_000_000
    assert config.hop == 384


def _fused(generator: UnitGenerator) -> UnitGenerator:
    fuse_weight_norm(generator)
    return generator


@pytest.mark.parametrize("name", TINY)
def test_every_frame_gives_one_hop(name):
    units = torch.randint(0, 200, (2, 7))
    wave = tiny(name)(units)
    assert wave.shape == (2, 7 * TINY[name].hop)
    assert torch.isfinite(wave).all()
    assert wave.abs().max() <= 1
    assert wave.std() > 0


@pytest.mark.parametrize("name", TINY)
def test_padding_changes_nothing(name):
    generator = tiny(name).double().eval()
    hop = TINY[name].hop
    units = torch.randint(0, 200, (2, 9))
    with torch.no_grad():
        together = generator(units, torch.tensor([9, 4]))
        long, short = generator(units[:1]), generator(units[1:, :4])
    torch.testing.assert_close(together[:1], long, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together[1:, : 4 * hop], short, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("speaker_dim", [0, 3])
@pytest.mark.parametrize("name", ["paper", "small"])
def test_gradients_reach_every_parameter(name, speaker_dim):
    generator = tiny(name, speaker_dim=speaker_dim)
    units = torch.randint(0, 200, (1, 6))
    speaker = torch.randn(1, speaker_dim) if speaker_dim else None
    if generator.config.filter_size:
        frames = 6 * 384 * 4 // generator.config.filter_size
        wave, log_pitch = generator.forced(units, torch.full((1, frames), 180.0), torch.ones(1, frames).bool(), speaker)
        (wave.square().sum() + log_pitch.sum()).backward()
    else:
        generator(units, speaker=speaker).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.parameters())


def test_fusing_weight_norm_changes_nothing():
    generator = tiny("paper").double()
    units = torch.randint(0, 200, (1, 5))
    before = generator(units)
    fuse_weight_norm(generator)
    assert not any("parametrizations" in name for name in generator.state_dict())
    torch.testing.assert_close(generator(units), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["paper", "small"])
def test_many_voices_begin_as_the_one_they_start_from(name):
    one, many = _fused(tiny(name)).double(), UnitGenerator(dataclasses.replace(TINY[name], speaker_dim=3)).double()
    units, speaker = torch.randint(0, 200, (1, 5)), torch.randn(1, 3).double()
    assert not torch.allclose(many(units, speaker=speaker), one(units), atol=1e-4)
    many.start_from(one)
    torch.testing.assert_close(many(units, speaker=speaker), one(units), rtol=1e-4, atol=1e-5)
    many.films[0].weight.data.normal_()
    again = UnitGenerator(many.config).double()
    again.start_from(_fused(many))
    torch.testing.assert_close(again(units, speaker=speaker), many(units, speaker=speaker), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="is of another shape"):
        UnitGenerator(TINY[name]).start_from(many)


def test_the_hifigan_path_equals_a_second_writing_of_it():
    """Parity with the generator written out from the HiFi-GAN paper's appendix, layer by layer."""
    generator = _fused(tiny("paper").double())
    units = torch.randint(0, 200, (1, 4))
    state = generator.state_dict()

    def conv(x, name, dilation=1):
        weight = state[f"{name}.weight"]
        x = functional.pad(x, (dilation * (weight.shape[-1] - 1) // 2,) * 2)
        return functional.conv1d(x, weight, state[f"{name}.bias"], dilation=dilation)

    x = conv(state["embedding.weight"][units].mT, "first")
    for i, (rate, kernel) in enumerate(zip((5, 4, 4, 2, 2), (11, 8, 8, 4, 4), strict=True)):
        x = functional.leaky_relu(x, 0.1)
        x = functional.conv_transpose1d(
            x, state[f"upsamplings.{i}.weight"], state[f"upsamplings.{i}.bias"], rate, (kernel - rate) // 2
        )
        total = torch.zeros_like(x)
        for j in range(3):
            y = x
            for k, dilation in enumerate((1, 3, 5)):
                z = conv(functional.leaky_relu(y, 0.1), f"blocks.{i}.{j}.dilated.{k}", dilation)
                y = y + conv(functional.leaky_relu(z, 0.1), f"blocks.{i}.{j}.plain.{k}")
            total = total + y
        x = total / 3
    wave = torch.tanh(conv(functional.leaky_relu(x, 0.01), "last"))[:, 0]
    torch.testing.assert_close(generator(units), wave, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["paper", "small"])
def test_a_speaker_changes_the_voice_and_is_needed(name):
    generator = tiny(name, speaker_dim=4)
    units = torch.randint(0, 200, (1, 5))
    one, other = (generator(units, speaker=torch.full((1, 4), value)) for value in (0.0, 1.0))
    torch.testing.assert_close(one, other)  # before any training all speak alike
    for film in generator.films:
        film.weight.data.normal_(0, 0.1)
    one, other = (generator(units, speaker=torch.full((1, 4), value)) for value in (0.0, 1.0))
    assert not torch.allclose(one, other)
    with pytest.raises(UserError, match="speaker_dim=4"):
        generator(units)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"upsample_kernels": (11, 8)}, "upsample_kernels"),
        ({"upsample_kernels": (10, 8, 8, 4, 4)}, "upsample_kernels"),
        ({"resblock_kernels": (4,)}, "resblock_kernels"),
        ({"channels": 100}, "channels=100"),
        ({"filter_size": 30}, "filter_size=30"),
        ({"units": 0}, "units=0"),
        ({"upsample_rates": ()}, "upsample_rates"),
        ({"speaker_dim": -1}, "speaker_dim"),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(changes, named):
    with pytest.raises(UserError, match=named):
        VocoderConfig.preset("paper", **changes)
    with pytest.raises(UserError, match="paper, paper-384, small"):
        VocoderConfig.preset("papper")


@settings(deadline=None, max_examples=10)
@given(st.lists(st.lists(st.integers(0, 199), min_size=1, max_size=12), min_size=1, max_size=4), st.booleans())
def test_every_waveform_is_as_long_as_its_durations(vocoder, sequences, merged):
    waves = vocoder.synthesize(sequences, merged=merged, batch=3)
    frames = [d.sum() for d in vocoder.durations(sequences)] if merged else [len(s) for s in sequences]
    assert [len(w) for w in waves] == [f * 384 for f in frames]
    assert all(w.dtype == np.float32 for w in waves)


def test_the_order_and_size_of_batches_do_not_matter(vocoder):
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 200, size) for size in (9, 2, 6, 13)]
    at_once = vocoder.synthesize(sequences, merged=True, batch=4)
    one_by_one = [vocoder.synthesize([s], merged=True)[0] for s in sequences]
    for a, b in zip(at_once, one_by_one, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [([[1], []], "sequence 1 has no units"), ([[1, 200]], "unit 200"), ([[-1]], "unit -1")],
)
@pytest.mark.parametrize("merged", [True, False])
def test_what_cannot_be_spoken_is_refused(vocoder, sequences, message, merged):
    with pytest.raises(UserError, match=message):
        vocoder.synthesize(sequences, merged=merged)


def test_nothing_to_speak_gives_nothing(vocoder):
    assert vocoder.synthesize([], merged=True) == []


def test_a_saved_vocoder_speaks_the_same(vocoder, tmp_path):
    vocoder.save(tmp_path / "vocoder")
    again = Vocoder.load(tmp_path / "vocoder")
    assert again.config == vocoder.config
    assert again.codebook == "c0debook"
    assert json.loads((tmp_path / "vocoder" / "sparq.json").read_text())["inputs"] == {"codebook": "c0debook"}
    again.save(tmp_path / "twice")
    # half precision loses a little once, and nothing the second time
    weights = [(tmp_path / name / "vocoder.safetensors").read_bytes() for name in ("vocoder", "twice")]
    assert weights[0] == weights[1]
    units = [[3, 1, 4, 1, 5, 9, 2, 6]]
    np.testing.assert_allclose(
        vocoder.synthesize(units, merged=False)[0], again.synthesize(units, merged=False)[0], atol=0.02
    )


@pytest.fixture(scope="module")
def many() -> Vocoder:
    generator, durations = tiny("small", speaker_dim=6), DurationPredictor(200, speaker_dim=6)
    for layer in (*generator.films, durations.speaker):
        layer.weight.data.normal_(0, 0.1)
    table = SpeakerTable(("ann", "bob"), np.eye(2, 6, dtype=np.float32), "bob", "resemblyzer", "f00d")
    return Vocoder(generator, durations, "c0debook", table)


def test_voices_are_saved_with_the_folder(many, tmp_path):
    many.save(tmp_path / "many")
    again = Vocoder.load(tmp_path / "many")
    assert again.voices.names == ("ann", "bob")
    assert (again.voices.default, again.voices.encoder_name, again.voices.encoder) == ("bob", "resemblyzer", "f00d")
    np.testing.assert_array_equal(again.embedding("ann"), many.embedding("ann"))
    units, merged = [[3, 1, 4, 1, 5, 9, 2, 6]], False
    by_ann, by_bob, unasked = (
        again.synthesize(units, merged=merged, speaker=again.embedding(voice))[0] for voice in ("ann", "bob", None)
    )
    np.testing.assert_array_equal(by_bob, unasked)
    assert np.abs(by_ann - by_bob).max() > 1e-3
    np.testing.assert_allclose(
        by_ann, many.synthesize(units, merged=merged, speaker=many.embedding("ann"))[0], atol=0.02
    )
    manifest = json.loads((tmp_path / "many" / "sparq.json").read_text())
    assert manifest["inputs"] == {"codebook": "c0debook", "speaker_encoder": "f00d"}


@pytest.mark.parametrize("merged", [True, False])
def test_every_sequence_of_a_batch_has_its_own_voice(many, merged):
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 200, size) for size in (9, 2, 6, 13, 6)]
    voices = np.stack([many.embedding(voice) for voice in ("ann", "bob", "ann", "ann", "bob")])
    at_once = many.synthesize(sequences, merged=merged, speaker=voices, batch=2)
    for sequence, voice, wave in zip(sequences, voices, at_once, strict=True):
        alone = many.synthesize([sequence], merged=merged, speaker=voice)[0]
        np.testing.assert_allclose(wave, alone, atol=1e-5)


def test_a_voice_goes_with_a_vocoder_of_many_alone(many, vocoder):
    assert vocoder.embedding() is None
    with pytest.raises(UserError, match="speaks with one voice alone"):
        vocoder.embedding("ann")
    with pytest.raises(UserError, match=r"speaker: shape \[6\]"):
        vocoder.synthesize([[1]], merged=False, speaker=np.ones(6))
    with pytest.raises(UserError, match=r"speaker: shape \[2, 6\]"):
        many.synthesize([[1]], merged=False, speaker=np.ones((2, 6)))
    with pytest.raises(UserError, match="speaker_dim=6, but its voices have 0"):
        Vocoder(tiny("small", speaker_dim=6), DurationPredictor(200, speaker_dim=6), "c0debook")


def test_a_vocoder_of_one_voice_speaks_as_it_always_has():
    """Golden numbers from before there were streaming and voices: what was trained then sounds the same."""
    torch.manual_seed(0)
    generator = UnitGenerator(TINY["small"])
    for parameter in generator.parameters():
        parameter.data.mul_(0.9)
    with torch.no_grad():
        wave = generator(torch.arange(0, 200, 9)[None])[0]
    golden = [0.0146506, 0.0094024, -0.0228002, -0.002867, 0.00393, -0.0040217, -0.0046732, 0.0023946]
    torch.testing.assert_close(wave[4000:4008], torch.tensor(golden), rtol=1e-3, atol=1e-5)
    assert wave.square().mean().sqrt().item() == pytest.approx(0.0157814, rel=1e-3)


def test_what_ships_is_saved_again_with_its_fingerprint(tmp_path):
    Vocoder.load(shipped("vocoder")).save(tmp_path / "again")
    both = [read_manifest(folder, "vocoder").fingerprint for folder in (tmp_path / "again", shipped("vocoder"))]
    assert both[0] == both[1]


def test_a_damaged_folder_is_named(vocoder, tmp_path):
    folder = tmp_path / "vocoder"
    vocoder.save(folder)
    weights = folder / "vocoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged vocoder"):
        Vocoder.load(folder)
    weights.unlink()
    with pytest.raises(UserError, match="damaged vocoder"):
        Vocoder.load(folder)
    with pytest.raises(UserError, match="not a SpARQ vocoder"):
        Vocoder.load(tmp_path / "nowhere")


def test_durations_are_learnt_and_padding_does_not_change_them():
    # unit k lasts k frames, except that a unit after 4 lasts twice as long
    random = np.random.default_rng(0)

    def utterance():
        merged = [int(u) for u in random.permutation(np.arange(1, 5))]
        frames = [u * (2 if previous == 4 else 1) for previous, u in zip([0, *merged], merged, strict=False)]
        return merged, frames

    sentences = [utterance() for _ in range(64)]
    model = fit_durations([np.repeat(m, f) for m, f in sentences], 5, steps=150, batch=32)
    guesses = [model.durations(torch.tensor([m]), torch.tensor([4]))[0].tolist() for m, _ in sentences[:20]]
    assert np.mean([g == f for g, (_, f) in zip(guesses, sentences, strict=False)]) > 0.9
    units = torch.tensor([[1, 4, 2, 3], [3, 4, 0, 0]])
    padded = model.durations(units, torch.tensor([4, 2]))
    assert padded[1].tolist() == [*model.durations(units[1:, :2], torch.tensor([2]))[0].tolist(), 0, 0]


def uneven(share):
    """Units that last 2 or 14 frames, and nothing tells which."""
    random = np.random.default_rng(1)
    merged = [random.permutation(6) for _ in range(80)]
    return [np.repeat(one, np.where(random.random(6) < share, 14, 2)) for one in merged]


def total(model, sequences):
    merged = [torch.from_numpy(merge_repeats(one)[0]) for one in sequences]
    return sum(int(model.durations(one[None], torch.tensor([len(one)])).sum()) for one in merged)


def test_speech_lasts_as_long_as_what_it_was_learnt_from():
    """The mean of the logarithms alone would make it a fifth shorter, and more."""
    sequences = uneven(0.5)
    model = fit_durations(sequences, 6, steps=120)
    assert total(model, sequences) == pytest.approx(sum(map(len, sequences)), rel=0.05)
    middles = np.exp(np.mean([np.log1p(merge_repeats(one)[1]).mean() for one in sequences])) - 1
    assert 6 * len(sequences) * middles < 0.8 * sum(map(len, sequences))


def test_durations_go_on_from_those_that_were_learnt():
    before = fit_durations(uneven(0.5), 6, steps=120)
    kept = copy.deepcopy(before.state_dict())
    later = uneven(0.9)
    after = fit_durations(later, 6, steps=60, start=before)
    for name, value in before.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0)
    assert total(after, later) == pytest.approx(sum(map(len, later)), rel=0.05)
    assert total(before, later) < 0.9 * sum(map(len, later))
    nothing = fit_durations(later, 6, steps=0, start=before)
    torch.testing.assert_close(nothing.embedding.weight, before.embedding.weight, rtol=0, atol=0)
