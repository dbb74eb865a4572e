"""Speaker embeddings: the front end and network of Resemblyzer, x-vectors, long audio, and tables of voices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from sparq import assets
from sparq.assets import embedded
from sparq.errors import UserError
from sparq.speech import speaker as module
from sparq.speech import speaker_table
from sparq.speech.audio import RATE, load_audio, save_audio
from sparq.speech.speaker import GE2E, ResemblyzerEncoder, SpeakerEncoder, XVectorEncoder, load_speaker_encoder
from sparq.speech.speaker_table import SpeakerTable

# Made with Resemblyzer 0.1.4, librosa 0.11 and webrtcvad left out, on seconds 1 … of the two recordings.
GOLDEN = {
    ("two_cities", 5.0): ([169, 158, 109, 40, 240], [0.0, 0.00283431, 0.0, 0.0, 0.0, 0.05979521, 0.0, 0.06447251], 9.031351),
    ("beckett", 7.3): ([243, 240, 112, 89, 169], [0.10483389, 0.0, 0.0, 0.0, 0.0, 0.0561748, 0.0, 0.00017522], 9.110557),
    ("beckett", 1.0): ([243, 226, 112, 240, 151], [0.00504746, 0.0, 0.0, 0.0, 0.0, 0.13272767, 0.0, 0.0], 8.322282),
}  # fmt: skip


def recording(name: str, seconds: float) -> np.ndarray:
    return load_audio(embedded(f"recordings/{name}.wav"))[RATE : RATE + round(seconds * RATE)]


def installed() -> bool:
    try:
        return embedded("resemblyzer").is_file()
    except UserError:
        return False


needs_weights = pytest.mark.skipif(not installed(), reason="Resemblyzer is not installed (pip install --no-deps)")


@pytest.fixture
def random_weights(tmp_path, monkeypatch):
    """A file as the package's, of random weights."""
    torch.manual_seed(0)
    path = tmp_path / "pretrained.pt"
    extra = {"similarity_weight": torch.ones(1), "similarity_bias": torch.zeros(1)}
    torch.save({"model_state": GE2E().state_dict() | extra, "step": 1}, path)
    monkeypatch.setattr(module, "embedded", lambda name: path)
    return path


@needs_weights
@pytest.mark.parametrize("which", GOLDEN)
def test_resemblyzers_own_numbers(which):
    strongest, first, total = GOLDEN[which]
    vector = load_speaker_encoder().embed([recording(*which)])[0]
    np.testing.assert_allclose(vector[:8], first, atol=1e-6)
    assert np.argsort(-vector)[:5].tolist() == strongest
    assert vector.sum() == pytest.approx(total, abs=1e-4)


@needs_weights
def test_one_speaker_is_nearer_to_himself_than_to_another():
    waves = [recording("two_cities", 12.0), recording("beckett", 12.0)]
    first = load_speaker_encoder().embed([wave[: 6 * RATE] for wave in waves])
    second = load_speaker_encoder().embed([wave[6 * RATE :] for wave in waves])
    similar = first @ second.T
    assert similar[0, 0] > similar[0, 1] + 0.1
    assert similar[1, 1] > similar[1, 0] + 0.1


def test_the_front_end_equals_the_one_of_transformers(random_weights):
    wave = np.random.default_rng(0).normal(size=16 * 160).astype(np.float32) * 0.1
    mine = ResemblyzerEncoder().mel(torch.from_numpy(np.pad(wave, 200))[None])[0].numpy()
    filters = mel_filter_bank(201, 40, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney")
    theirs = spectrogram(
        wave, window_function(400, "hann"), 400, 160, power=2.0, pad_mode="constant", mel_filters=filters
    )
    np.testing.assert_allclose(mine, theirs.T, rtol=1e-3, atol=1e-6)


def test_long_audio_is_the_mean_of_its_windows_and_silence_counts_for_nothing(random_weights):
    encoder = ResemblyzerEncoder()
    random = np.random.default_rng(0)
    wave = (random.normal(size=15 * RATE) * np.repeat(random.uniform(0.1, 0.2, 15), RATE)).astype(np.float32)
    windows = encoder._windows(wave)
    assert len(windows) == 18  # 1.3 a second
    mean = np.mean([encoder._forward(window[None])[0] for window in windows], axis=0)
    vector = encoder.embed([wave])[0]
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    pause = np.zeros(10 * 77 * 160, np.float32)  # whole windows
    beside = encoder.embed([np.concatenate([wave, pause])])[0]
    assert vector @ beside > 0.999
    # Quiet recordings are raised; others stay as they are, and so does what is embedded.
    np.testing.assert_allclose(encoder.embed([wave * 1e-3]), encoder.embed([wave * 1e-2]), atol=1e-5)


def test_recordings_do_not_change_each_other(random_weights):
    encoder = ResemblyzerEncoder()
    waves = [np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate((1600, 40000, 26000))]
    together = encoder.embed(waves)
    assert together.shape == (3, 256)
    for wave, vector in zip(waves, together, strict=True):
        np.testing.assert_allclose(encoder.embed([wave])[0], vector, atol=1e-6)
    assert encoder.embed([]).shape == (0, 256)


def test_what_cannot_be_embedded_is_refused(random_weights):
    encoder = ResemblyzerEncoder()
    wave = np.ones(RATE, np.float32)
    with pytest.raises(UserError, match=r"waveform 1: 0\.050 s are too short"):
        encoder.embed([wave, wave[:800]])
    with pytest.raises(UserError, match="waveform 0: is silent"):
        encoder.embed([0 * wave])
    with pytest.raises(UserError, match="not a finite number"):
        encoder.embed([wave * np.nan])


def test_the_fingerprint_is_of_the_weights(random_weights):
    before = ResemblyzerEncoder().fingerprint
    assert before == ResemblyzerEncoder().fingerprint
    torch.save({"model_state": GE2E().state_dict()}, random_weights)
    assert ResemblyzerEncoder().fingerprint != before
    random_weights.write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged weights"):
        ResemblyzerEncoder()


def test_a_missing_package_is_told_how_to_install(monkeypatch):
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps Resemblyzer==0\.1\.4"):
        ResemblyzerEncoder()


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    """A random WavLM with an x-vector head, as a folder."""
    folder = tmp_path_factory.mktemp("wavlm")
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_buckets=8,
        conv_dim=[8] * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        tdnn_dim=[8, 8, 8, 8, 12], xvector_output_dim=6, use_weighted_layer_sum=True,
    )  # fmt: skip
    WavLMForXVector(config).eval().save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def test_x_vectors_are_those_of_transformers(wavlm):
    encoder = load_speaker_encoder(str(wavlm))
    assert isinstance(encoder, XVectorEncoder)
    assert encoder.dimension == 6
    wave = np.random.default_rng(0).normal(size=2 * RATE).astype(np.float32)
    model = WavLMForXVector.from_pretrained(wavlm).eval()
    given = Wav2Vec2FeatureExtractor.from_pretrained(wavlm)(wave, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**given).embeddings[0].numpy()
    np.testing.assert_allclose(encoder.embed([wave])[0], theirs / np.linalg.norm(theirs), atol=1e-5)


def test_x_vectors_of_short_and_long_audio(wavlm):
    encoder = XVectorEncoder(str(wavlm))
    wave = np.random.default_rng(0).normal(size=24 * RATE).astype(np.float32)
    assert [len(window) for window in encoder._windows(wave)] == [10 * RATE, 14 * RATE]
    vectors = encoder.embed([wave, wave[:2000]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_folders_that_hold_no_x_vectors_are_refused(wavlm, tmp_path):
    from transformers import HubertConfig, WavLMModel

    HubertConfig().save_pretrained(tmp_path / "hubert")
    with pytest.raises(UserError, match="is a hubert model; speaker encoders are resemblyzer and WavLM"):
        load_speaker_encoder(str(tmp_path / "hubert"))
    WavLMModel(WavLMForXVector.from_pretrained(wavlm).config).save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="without the layers of x-vectors"):
        load_speaker_encoder(str(tmp_path / "plain"))
    with pytest.raises(UserError, match="nowhere: cannot be loaded as a WavLM"):
        load_speaker_encoder(str(tmp_path / "nowhere"))


class Loudness(SpeakerEncoder):
    """Tells voices apart by how loud they are."""

    name, dimension, fingerprint = "loudness", 2, "f00d"

    def _windows(self, waveform):
        return [waveform]

    def _forward(self, windows):
        return np.stack([np.ones(len(windows)), windows.std(axis=1)], axis=1)


@pytest.fixture
def table() -> SpeakerTable:
    embeddings = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    return SpeakerTable.of_recordings(["bob", "ann", "bob"], embeddings, [1.0, 2.5, 1.0], Loudness())


def test_a_voice_is_the_mean_of_its_recordings_and_who_speaks_longest_is_the_default(table):
    assert table.names == ("ann", "bob")
    assert table.default == "ann"
    np.testing.assert_allclose(table.find("ann"), [0, 1])
    np.testing.assert_allclose(table.find("bob"), np.array([0.8, 0.4]) / np.hypot(0.8, 0.4), rtol=1e-6)
    np.testing.assert_allclose(table.find(None), table.find("ann"))
    np.testing.assert_allclose(table.find(np.array([3.0, 4.0])), [0.6, 0.8], rtol=1e-6)


def test_a_recording_is_a_voice(table, tmp_path, monkeypatch):
    monkeypatch.setattr(speaker_table, "load_speaker_encoder", lambda name: Loudness())
    wave = np.sign(np.random.default_rng(0).normal(size=RATE)).astype(np.float32) * 0.75
    save_audio(tmp_path / "he.wav", wave)
    for voice in (wave, tmp_path / "he.wav", str(tmp_path / "he.wav")):
        np.testing.assert_allclose(table.find(voice), [0.8, 0.6], atol=1e-3)
    monkeypatch.setattr(Loudness, "fingerprint", "other")
    with pytest.raises(UserError, match=r"speaker encoder.* do not belong together"):
        table.find(wave)


def test_what_is_no_voice_is_refused_by_name(table, monkeypatch):
    with pytest.raises(UserError, match=r"voice 'anne': no such voice and no such file \(did you mean ann\?\)"):
        table.find("anne")
    with pytest.raises(UserError, match="zero or not finite"):
        table.find(np.zeros(2))
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(speaker_table, "load_speaker_encoder", lambda name: ResemblyzerEncoder())
    with pytest.raises(UserError, match=r"Resemblyzer==0\.1\.4; without it there are the voices ann, bob"):
        table.find(np.ones(RATE, np.float32))
