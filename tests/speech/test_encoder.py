from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import HubertConfig, HubertModel, MoonshineConfig, MoonshineModel

from sparq.assets import embedded
from sparq.errors import UserError
from sparq.speech import moonshine
from sparq.speech.audio import RATE, load_audio
from sparq.speech.encoder import Encoder, load_encoder
from sparq.speech.moonshine import FIRST_FRAME, HOP, moonshine_weights, one_thread
from sparq.speech.units import fit_codebook


@pytest.fixture(scope="module")
def speech():
    return load_audio(embedded("recordings/two_cities.wav"))


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("moonshine-tiny")


@pytest.fixture(scope="module")
def codebook(encoder, speech):
    return fit_codebook(encoder.encode([speech]), encoder, k=100)


def save_hubert(folder, style):
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,) * 7,
        feat_extract_norm=style,
        do_stable_layer_norm=style == "layer",
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    model = HubertModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_float_graph_is_the_packaged_graph_up_to_its_eight_bits(speech):
    wave = speech[: 4 * RATE]
    whole = load_encoder("moonshine-tiny", layers=[6])
    session = onnxruntime.InferenceSession(str(embedded("moonshine-tiny/encoder")), one_thread())
    (packaged,) = session.run(None, {"input_values": wave[None], "attention_mask": np.ones((1, len(wave)), np.int64)})
    (ours,) = whole.encode([wave])
    assert ours.shape == packaged[0].shape == (whole.frames(len(wave)), 288)
    cosine = (ours * packaged[0]).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(packaged[0], axis=1)
    assert cosine.mean() > 0.98


@pytest.mark.parametrize("frames", [1, 2, 75])
def test_every_layer_of_moonshine_is_that_of_transformers(speech, frames):
    samples = FIRST_FRAME + (frames - 1) * HOP
    arrays = moonshine_weights(embedded("moonshine-tiny/encoder"))
    packaged = {
        **{f"conv{n}.weight": arrays[f"conv{n}.weight_add_tensor"] for n in (1, 2, 3)},
        "groupnorm.weight": arrays["onnx::Mul_2080"].ravel(),
        "groupnorm.bias": arrays["onnx::Add_2081"].ravel(),
        **{name: array for name, array in arrays.items() if name.endswith((".weight", ".bias"))},
    }
    for name in [name for name in arrays if name.startswith("/layers.") and arrays[name].ndim == 2]:
        packaged[name.strip("/").replace("/", ".") + ".weight"] = arrays[name].T
    model = MoonshineModel(MoonshineConfig(attn_implementation="eager")).encoder.eval()
    model.load_state_dict({name: torch.tensor(array) for name, array in packaged.items()})
    states: list[torch.Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, given: states.append(given[0]))
    for layer in model.layers[:-1]:
        layer.register_forward_hook(lambda _, given, its: states.append(its))
    with torch.inference_mode():
        states.append(model(torch.from_numpy(speech[None, :samples])).last_hidden_state)
    found = load_encoder("moonshine-tiny", layers=range(7)).encode([speech[:samples]])[0]
    for expected, ours in zip(states, np.split(found, 7, axis=1), strict=True):
        np.testing.assert_allclose(ours, expected[0], rtol=0, atol=3e-5 * float(expected.abs().max()))


def test_another_versions_moonshine_is_named(monkeypatch):
    arrays = moonshine_weights(embedded("moonshine-tiny/encoder"))
    del arrays["conv2.bias"]
    monkeypatch.setattr(moonshine, "moonshine_weights", lambda _: arrays)
    with pytest.raises(UserError, match=r"not the Moonshine encoder that is known here \(it has no 'conv2.bias'\)"):
        load_encoder("moonshine-tiny")


def test_a_batch_gives_the_units_of_one_by_one(encoder, codebook, speech):
    lengths = [16000, 8000, 16000, 16100, 40000, 895, 16000]
    waves = [speech[7000 * i :][:n] for i, n in enumerate(lengths)]
    together = encoder.encode(waves)
    alone = [encoder.encode([wave])[0] for wave in waves]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
        np.testing.assert_array_equal(codebook.assign(a), codebook.assign(b))


def test_features_of_several_layers_stand_side_by_side(encoder, speech):
    both = load_encoder("moonshine-tiny", layers=[5, 2])
    (together,) = both.encode([speech[:33333]])
    (second,) = load_encoder("moonshine-tiny", layers=[2]).encode([speech[:33333]])
    np.testing.assert_array_equal(together, np.concatenate([*encoder.encode([speech[:33333]]), second], axis=1))
    assert both.dimension == 2 * encoder.dimension
    assert len({both.fingerprint, encoder.fingerprint, load_encoder("moonshine-tiny", layers=[2, 5]).fingerprint}) == 3
    with pytest.raises(UserError, match="expected at least one layer"):
        load_encoder("moonshine-tiny", layers=[])


@pytest.mark.parametrize("samples", [895, 1278, 1279, 5000, 16000, 33333])
def test_the_number_of_frames_is_known_beforehand(encoder, speech, samples):
    assert encoder.encode([speech[:samples]])[0].shape == (encoder.frames(samples), encoder.dimension)


def test_too_short_for_a_frame(encoder):
    assert encoder.encode([np.ones(894, np.float32)])[0].shape == (0, 288)


def test_units_of_long_audio_are_those_of_its_parts_away_from_the_cuts(speech, codebook):
    encoder = load_encoder("moonshine-tiny", block_seconds=4.8)
    (whole,) = encoder.encode([speech[: 24 * RATE]])
    start = 2 * encoder.block  # cut on the grid
    (part,) = encoder.encode([speech[start * encoder.hop : 22 * RATE]])
    away = slice(encoder.block, 2 * encoder.block)  # the block after the first, which lost its context to the cut
    assert len(part) > away.stop + encoder.context
    np.testing.assert_array_equal(codebook.assign(part[away]), codebook.assign(whole[start:][away]))


def test_blocks_stay_close_to_one_pass(encoder, codebook, speech):
    one_pass = load_encoder("moonshine-tiny", block_seconds=60)
    (blocks,), (whole,) = encoder.encode([speech]), one_pass.encode([speech])
    assert blocks.shape == whole.shape
    agreement = np.mean(codebook.assign(blocks) == codebook.assign(whole))
    assert 0.9 < agreement < 1.0


class Counting(Encoder):
    """Features are the number of the hop they start with, so seams can be seen."""

    def __init__(self, block_seconds):
        super().__init__("counting", (0,), 400, 400, 1, "none", block_seconds)
        self.longest = 0

    def _forward(self, batch):
        self.longest = max(self.longest, batch.shape[1])
        return batch[:, ::400, None]


@pytest.mark.parametrize("frames", [1, 79, 80, 81, 119, 120, 121, 161, 200, 1000])
def test_every_frame_of_long_audio_is_there_once_and_in_bounded_memory(frames):
    encoder = Counting(block_seconds=1.0)  # 40 frames, and 80 of context
    wave = np.repeat(np.arange(frames, dtype=np.float32), 400)
    (features,) = encoder.encode([wave])
    np.testing.assert_array_equal(features[:, 0], np.arange(frames))
    assert encoder.longest <= (80 + 40 + 80 + 80) * 400


def test_units_hardly_depend_on_the_place_in_the_clip(encoder, codebook, speech):
    """What the layer was chosen for; the packaged output (layer 6) fails this."""
    hop, start = encoder.hop, 150
    later = speech[: 10 * RATE]
    (long,), (cut,) = encoder.encode([later]), encoder.encode([later[start * hop :]])
    assert np.mean(codebook.assign(long[start:])[20:] == codebook.assign(cut)[20:]) > 0.75


@pytest.mark.parametrize("style", ["group", "layer"])
@pytest.mark.parametrize("layer", [0, 1, 4])
def test_hubert_reads_the_hidden_states_of_transformers(tmp_path, speech, style, layer):
    model = save_hubert(tmp_path / "hubert", style)
    encoder = load_encoder(str(tmp_path / "hubert"), layers=[layer])
    wave = speech[: 400 + 30 * 320]
    given = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7) if style == "layer" else wave
    with torch.inference_mode():
        expected = model(torch.from_numpy(given)[None], output_hidden_states=True).hidden_states[layer][0]
    assert (encoder.hop, encoder.first_frame, encoder.dimension) == (320, 400, 16)
    np.testing.assert_allclose(encoder.encode([wave])[0], expected.numpy(), atol=1e-4)


def test_hubert_batches_are_exact_although_its_group_norm_sees_padding(tmp_path, speech):
    save_hubert(tmp_path / "hubert", "group")
    encoder = load_encoder(str(tmp_path / "hubert"))
    waves = [speech[:4000], speech[4000:11000], speech[20000:24000]]
    for batch, wave in zip(encoder.encode(waves), waves, strict=True):
        np.testing.assert_allclose(batch, encoder.encode([wave])[0], atol=1e-5)


def test_fingerprints_tell_layers_weights_and_blocks_apart(tmp_path):
    save_hubert(tmp_path / "a", "group")
    model = save_hubert(tmp_path / "b", "group")
    with torch.no_grad():
        next(model.encoder.layers[0].parameters()).add_(1e-3)
    model.save_pretrained(tmp_path / "c")
    a, b, c = (load_encoder(str(tmp_path / name)).fingerprint for name in "abc")
    assert a == b != c
    assert load_encoder(str(tmp_path / "a"), layers=[1]).fingerprint != a
    assert load_encoder(str(tmp_path / "a"), block_seconds=9).fingerprint != a


def test_bad_names_and_layers(tmp_path):
    with pytest.raises(UserError, match=r"moonshine-tiny: has no layer 7; layers are 0 to 6"):
        load_encoder("moonshine-tiny", layers=[7])
    with pytest.raises(UserError, match="nowhere"):
        load_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="block_seconds"):
        load_encoder(block_seconds=0)


def test_nan_is_refused_by_number(encoder):
    with pytest.raises(UserError, match="waveform 1"):
        encoder.encode([np.zeros(1000, np.float32), np.array([np.nan] * 1000, np.float32)])
