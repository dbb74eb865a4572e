"""A SpeechLM put together, saved, loaded, and heard; its parts are real but tiny and untrained."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import sparq
from sparq.artifacts import ArtifactMismatchError, read_manifest
from sparq.attention import install, installed
from sparq.config import AttentionConfig
from sparq.errors import UserError
from sparq.language import listening, speaking, speech_lm
from sparq.language.alignment import word_times
from sparq.language.generation import GenerationOptions, beam_search, generate
from sparq.language.joint_search import Answer, search_together
from sparq.language.limits import Limits
from sparq.language.rescoring import Rescoring, best_texts
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS, continuation_prompt, prompt
from sparq.language.vocabulary import Modality
from sparq.quantization import QuantizationConfig, quantize
from sparq.speech import activity, speaker_table
from sparq.speech.audio import save_audio
from sparq.speech.duration import DurationPredictor
from sparq.speech.edges import to_silence
from sparq.speech.encoder import Encoder
from sparq.speech.segmentation import spoken_spans
from sparq.speech.speaker import SpeakerEncoder
from sparq.speech.speaker_table import SpeakerTable
from sparq.speech.units import Codebook, UnitExtractor, merge_repeats
from sparq.speech.views import other_views
from sparq.speech.vocoder import UnitGenerator, Vocoder, VocoderConfig

UNITS = 12
RATE = 16000
SHORT = GenerationOptions(max_pieces=8)


class Loudness(Encoder):
    """An encoder small enough for a test: the logarithms of power and of zero crossings of every frame."""

    def __init__(self) -> None:
        super().__init__("loudness", (0,), 384, 384, 2, "no weights", 28.8)

    def _forward(self, batch):
        frames = batch[:, : batch.shape[1] // 384 * 384].reshape(len(batch), -1, 384)
        crossings = (np.diff(np.sign(frames), axis=-1) != 0).mean(-1)
        return np.log(np.stack([np.square(frames).mean(-1), crossings], -1) + 1e-3).astype(np.float32)


def codebook_of(seed=0, size=UNITS):
    centroids = np.random.default_rng(seed).uniform(-6, 0, (size, 2)).astype(np.float32)
    return Codebook(centroids, Loudness().fingerprint, "loudness", (0,))


def pieces_of(wave, longest):
    return [wave[span.start : span.stop] for span in spoken_spans(wave, activity.Loudness(), longest)]


def sound(seconds, seed=0):
    random = np.random.default_rng(seed)
    steps = np.repeat(random.uniform(0.01, 0.3, int(seconds * 10)), RATE // 10)
    return (steps * np.sin(np.cumsum(np.repeat(random.uniform(0.05, 2, len(steps) // 1600), 1600)))).astype(np.float32)


@pytest.fixture(autouse=True)
def levels_kept(monkeypatch):
    """The encoder of these tests hears how loud a sound is, and what is expected is cut by hand."""
    for module in (listening, speaking):
        monkeypatch.setattr(module, "levelled", lambda waveform: waveform)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
    monkeypatch.setattr(speech_lm, "load_encoder", lambda *_: Loudness())


@pytest.fixture(autouse=True)
def any_sound_is_speech(monkeypatch):
    monkeypatch.setattr(speech_lm, "load_detector", activity.Loudness)


@pytest.fixture(scope="module")
def codebook():
    return codebook_of()


@pytest.fixture(scope="module")
def vocoder(codebook, tmp_path_factory):
    torch.manual_seed(0)
    config = VocoderConfig.preset("small", units=UNITS, channels=16, embedding=8)
    folder = tmp_path_factory.mktemp("parts") / "vocoder"
    Vocoder(UnitGenerator(config), DurationPredictor(UNITS), codebook.fingerprint).save(folder)
    return Vocoder.load(folder)  # its weights are now numbers that half precision can hold


@pytest.fixture
def make(make_tiny, joint_vocabulary, codebook, vocoder):
    def made(kind="llama", vocabulary=joint_vocabulary, sink="max", limits=None, **more):
        model = make_tiny(kind, vocabulary, dtype=torch.float32, **{"positions": 512, **more})
        install(model, **AttentionConfig().arguments(sink))
        return SpeechLM(model, vocabulary, codebook, vocoder, limits=limits)

    return made


@pytest.fixture
def lm(make):
    return make()


@torch.no_grad()
def logits(lm):
    return lm.model(input_ids=torch.arange(6, 26)[None] % 90).logits


# ---- saving and loading


@pytest.mark.parametrize("mode", ["joint", "extend"])
@pytest.mark.parametrize("sink", ["none", "max", "learned", "clipped", "gated"])
def test_saved_and_loaded(make, request, mode, sink, tmp_path):
    vocabulary = request.getfixturevalue({"joint": "joint_vocabulary", "extend": "extended_vocabulary"}[mode])
    lm = make(vocabulary=vocabulary, sink=sink, limits=Limits(5.0, 9))
    if sink in {"learned", "gated"}:
        for name, parameter in lm.model.named_parameters():
            if "sink_logit" in name or "head_gate" in name:
                torch.nn.init.constant_(parameter, 1.5)
    manifest = lm.save(tmp_path / "lm")
    loaded = SpeechLM.load(tmp_path / "lm")
    torch.testing.assert_close(logits(loaded), logits(lm), rtol=0, atol=0)
    assert installed(loaded.model) == installed(lm.model)
    assert loaded.limits == lm.limits
    assert not loaded.model.training
    assert loaded.vocabulary.fingerprint == vocabulary.fingerprint
    assert loaded.codebook.fingerprint == lm.codebook.fingerprint
    assert manifest.inputs == {
        name: read_manifest(tmp_path / "lm" / name, name).fingerprint for name in ("vocabulary", "codebook", "vocoder")
    }
    wave, rate = loaded.speak("the sea", SHORT)
    np.testing.assert_allclose(wave, lm.speak("the sea", SHORT)[0], atol=1e-6)
    again = loaded.save(tmp_path / "again")
    assert again.fingerprint == manifest.fingerprint
    assert rate == RATE


def test_the_folder_is_an_ordinary_transformers_model(lm, tmp_path):
    lm.save(tmp_path / "lm", half=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm", dtype=torch.float32)
    assert model.config.vocab_size == lm.vocabulary.size


def test_simulated_quantisation_comes_back(make, tmp_path):
    lm = make()
    before = logits(lm)
    quantize(lm.model, QuantizationConfig(method="round", weight_bits=4, activation_bits=4))
    lm.save(tmp_path / "lm")
    loaded = SpeechLM.load(tmp_path / "lm")
    assert not torch.allclose(logits(lm), before, atol=1e-2)
    torch.testing.assert_close(logits(loaded), logits(lm), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_half_precision_on_disk_single_in_memory(make, tied, tmp_path):
    lm = make(tie_word_embeddings=tied, sink="learned")
    lm.save(tmp_path / "full")
    lm.save(tmp_path / "half", half=True)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert ("lm_head.weight" in stored) is not tied
    full, half = (tmp_path / name / "model.safetensors" for name in ("full", "half"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    loaded = SpeechLM.load(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    for name, weight in lm.model.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[name], weight.half().float(), rtol=0, atol=0)
    assert lm.model.dtype == torch.float32


def test_parts_that_ship_can_be_left_out(lm, codebook, tmp_path, monkeypatch):
    shipped = tmp_path / "weights"
    lm.save(shipped / "whole")
    for name in ("codebook", "vocoder"):
        shutil.move(shipped / "whole" / name, shipped / name)

    def find(name):
        if not (shipped / name).is_dir():
            raise UserError(f"{name}: missing from this installation")
        return shipped / name

    monkeypatch.setattr("sparq.language.folder.shipped", find)
    lm.save(tmp_path / "light", complete=False)
    assert sorted(path.name for path in (tmp_path / "light").iterdir() if path.is_dir()) == ["vocabulary"]
    torch.testing.assert_close(logits(SpeechLM.load(tmp_path / "light")), logits(lm), rtol=0, atol=0)
    lm.save(tmp_path / "complete")
    assert (tmp_path / "complete" / "codebook").is_dir()
    shutil.rmtree(shipped / "codebook")
    codebook_of(seed=5).save(shipped / "codebook")
    with pytest.raises(ArtifactMismatchError, match=r"light: the model \(its codebook\)"):
        SpeechLM.load(tmp_path / "light")


def test_a_failed_save_leaves_what_was_there(lm, tmp_path, monkeypatch):
    lm.save(tmp_path / "lm")
    monkeypatch.setattr(Vocoder, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        lm.save(tmp_path / "lm")
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]
    SpeechLM.load(tmp_path / "lm")


def test_adapters_must_be_merged(make, tmp_path):
    lm = make()
    adapted = get_peft_model(lm.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    unmerged = SpeechLM(adapted, lm.vocabulary, lm.codebook, lm.vocoder)
    text = unmerged.continue_text("the train", SHORT)
    with pytest.raises(UserError, match="merge them"):
        unmerged.save(tmp_path / "lm")
    assert not list(tmp_path.iterdir())
    merged = SpeechLM(adapted.merge_and_unload(), lm.vocabulary, lm.codebook, lm.vocoder)
    merged.save(tmp_path / "lm")
    assert SpeechLM.load(tmp_path / "lm").continue_text("the train", SHORT) == text


# ---- parts that do not belong together


def test_parts_of_others_are_refused(make_tiny, joint_vocabulary, make_joint, codebook, vocoder):
    model = make_tiny("llama", joint_vocabulary)
    with pytest.raises(ArtifactMismatchError, match=f"vocoder.*{vocoder.codebook}.*{codebook_of(1).fingerprint}"):
        SpeechLM(model, joint_vocabulary, codebook_of(1), vocoder)
    with pytest.raises(UserError, match="vocabulary writes 12 units, but the codebook has 7"):
        SpeechLM(model, joint_vocabulary, codebook_of(size=7))
    with pytest.raises(ArtifactMismatchError, match="unit extractor"):
        SpeechLM(model, joint_vocabulary, codebook, extractor=UnitExtractor(Loudness(), codebook_of(1)))
    small = make_tiny("llama", joint_vocabulary)
    small.resize_token_embeddings(50)
    with pytest.raises(UserError, match="50 embeddings, but its vocabulary 110 pieces"):
        SpeechLM(small, joint_vocabulary, codebook)


def test_a_model_remembers_its_vocabulary_and_codebook(lm, make_joint, tmp_path):
    lm.save(tmp_path / "lm")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    other = make_joint(normalisation="lower")
    with pytest.raises(
        ArtifactMismatchError, match=f"its vocabulary.*{lm.vocabulary.fingerprint}.*{other.fingerprint}"
    ):
        SpeechLM(model, other, lm.codebook)
    with pytest.raises(ArtifactMismatchError, match=r"the model \(its codebook\)"):
        SpeechLM(model, lm.vocabulary, codebook_of(1))
    SpeechLM(model, lm.vocabulary, lm.codebook)


@pytest.mark.parametrize("part", ["vocabulary", "codebook", "vocoder"])
def test_swapped_folders_are_refused(lm, make_joint, part, tmp_path):
    lm.save(tmp_path / "lm")
    wanted = read_manifest(tmp_path / "lm" / part, part).fingerprint
    shutil.rmtree(tmp_path / "lm" / part)
    (tmp_path / "lm" / part).mkdir()
    other = {"vocabulary": make_joint(normalisation="none"), "codebook": codebook_of(1)}
    other["vocoder"] = Vocoder(lm.vocoder.generator, DurationPredictor(UNITS), lm.codebook.fingerprint)
    other[part].save(tmp_path / "lm" / part)
    given = read_manifest(tmp_path / "lm" / part, part).fingerprint
    with pytest.raises(ArtifactMismatchError, match=rf"lm: the model \(its {part}\).*{wanted}.*{given}"):
        SpeechLM.load(tmp_path / "lm")
    shutil.rmtree(tmp_path / "lm" / part)
    with pytest.raises(UserError, match=part):
        SpeechLM.load(tmp_path / "lm")


def test_weights_of_another_model_are_refused(make, tmp_path):
    make().save(tmp_path / "lm")
    weights = tmp_path / "lm" / "model.safetensors"
    state = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in state.items()}, weights, {"format": "pt"})
    with pytest.raises(ArtifactMismatchError, match=r"the manifest \(its weights\)"):
        SpeechLM.load(tmp_path / "lm")


def test_damaged_folders(lm, tmp_path):
    folder = tmp_path / "lm"
    lm.save(folder)
    with pytest.raises(UserError, match="not a SpARQ speechlm folder"):
        SpeechLM.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds a codebook, expected a speechlm"):
        SpeechLM.load(folder / "codebook")
    config, manifest = folder / "config.json", folder / "sparq.json"
    whole, said = config.read_text(), manifest.read_text()
    config.write_text(whole[:50])
    with pytest.raises(UserError, match="lm: damaged model") as caught:
        SpeechLM.load(folder)
    assert "\n" not in str(caught.value)
    config.write_text(whole)
    changed = json.loads(said)
    del changed["settings"]["limits"]
    manifest.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="damaged manifest"):
        SpeechLM.load(folder)
    manifest.write_text(said)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="lm: "):
        SpeechLM.load(folder)


# ---- listening


def edged(piece):
    """A recording that is speech from end to end is given the silence that other stretches have at their edges: 0.2 s."""
    return np.pad(piece, 3200)


def test_transcription_is_asr_of_the_units(lm, tmp_path):
    wave = sound(3)
    (piece,) = pieces_of(wave, 9)
    (units,) = UnitExtractor(Loudness(), lm.codebook).extract([edged(piece)])
    ids = generate(lm.model, lm.vocabulary, [prompt(TASKS["asr"], lm.vocabulary, units)], Modality.TEXT, SHORT)[0]
    expected = lm.vocabulary.decode_text(ids)
    assert expected
    assert lm.transcribe(wave, SHORT, views=1) == expected
    save_audio(tmp_path / "a.flac", wave)
    for path in (tmp_path / "a.flac", str(tmp_path / "a.flac")):
        assert lm.transcribe(path, SHORT, views=1) == expected
    with (tmp_path / "a.flac").open("rb") as file:
        assert lm.transcribe(file, SHORT, views=1) == expected


def test_the_silence_around_a_recording_counts_in_no_time(lm, monkeypatch):
    wave = sound(3)
    (units,) = UnitExtractor(Loudness(), lm.codebook).extract([edged(*pieces_of(wave, 9))])
    monkeypatch.setattr(lm, "write_down", lambda heard, *_, **__: ["the sea"] * len(heard))
    (segment,) = lm.segments(wave, SHORT, words=True)
    found = word_times(lm.model, lm.vocabulary, units, "the sea", 384 / RATE)
    assert segment.start == segment.words[0].start == 0
    assert len(found) == len(segment.words) == 2
    for said, one in zip(segment.words, found, strict=True):
        assert said.end == pytest.approx(min(max(0, one.end - 0.2), 3))


@pytest.mark.parametrize(("before", "behind"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_only_a_recordings_own_edges_are_given_silence(lm, monkeypatch, before, behind):
    heard = []
    wave = np.pad(sound(2), (before * RATE, behind * RATE))
    (span,) = spoken_spans(wave, activity.Loudness(), 9)
    extract = lm.extractor.extract
    monkeypatch.setattr(lm.extractor, "extract", lambda waves: heard.extend(waves) or extract(waves))
    lm.transcribe(wave, SHORT, views=1)
    silence = [3200 * (not before), 3200 * (not behind)]
    np.testing.assert_array_equal(heard[0], np.pad(wave[span.start : span.stop], silence))


def test_beams_are_scored_by_all_views_and_their_texts_weighed_by_all(lm):
    wave = sound(3)
    piece = edged(*pieces_of(wave, 9))
    extractor = UnitExtractor(Loudness(), lm.codebook)
    (units,) = extractor.extract([piece])
    (views,) = other_views(extractor, [piece], 4)
    assert len(views) == 3
    options, task = beam_search(8), TASKS["asr"]
    prompts = [prompt(task, lm.vocabulary, one) for one in (units, *views)]
    (found,) = search_together(lm.model, lm.vocabulary, [prompts], task.target, options)
    texts = [lm.vocabulary.decode_text(its.ids) for its in found]
    expected = best_texts(lm.model, lm.vocabulary, [units], [texts], Rescoring(), [views])
    assert lm.write_down([units], options, views=[views]) == expected
    assert [lm.transcribe(wave, options)] == expected  # four, unless another number is asked for
    assert lm.write_down([units, units], options, views=[views, ()]) == expected + lm.write_down([units], options)
    with pytest.raises(UserError, match="views: 5"):
        lm.transcribe(wave, views=5)


def test_recordings_are_transcribed_with_a_beam_unless_told_otherwise(lm, monkeypatch):
    asked = []
    search = "sparq.language.listening.search_together"
    monkeypatch.setattr(search, lambda *given, **_: asked.append(given[-1]) or [[Answer([], 0)] for _ in given[2]])
    lm.transcribe(sound(2))
    lm.transcribe(sound(2), views=1)
    lm.transcribe(sound(2), GenerationOptions())
    assert [(options.method, options.answers) for options in asked] == [("beam", 4), ("beam", 8), ("greedy", 1)]


def test_many_recordings_are_transcribed_as_one_by_one(lm):
    waves = [sound(seconds, seed) for seed, seconds in enumerate((2, 5, 1, 3))]
    texts = lm.transcribe(waves, SHORT)
    assert texts == [lm.transcribe(wave, SHORT) for wave in waves]
    assert len(set(texts)) > 1
    assert lm.transcribe([], SHORT) == []


def test_long_recordings_are_cut_and_joined(make):
    lm = make(limits=Limits(seconds=4))
    parts = [sound(3, seed=seed) for seed in range(4)]
    pause = np.zeros(RATE, np.float32)
    whole = np.concatenate([x for part in parts for x in (part, pause)])
    pieces = pieces_of(whole, 4)
    assert len(pieces) == 4
    units = UnitExtractor(Loudness(), lm.codebook).extract([np.pad(pieces[0], (3200, 0)), *pieces[1:]])
    assert lm.transcribe(whole, SHORT, views=1) == " ".join(lm.write_down(units, SHORT))


def test_what_a_model_hears_fits_its_positions(make, monkeypatch):
    lm = make("gpt2", positions=128, limits=Limits(seconds=30))
    heard = []
    monkeypatch.setattr(
        listening,
        "search_together",
        lambda *a, **_: heard.extend(itertools.chain(*a[2])) or [[Answer([], 0)] for _ in a[2]],
    )
    lm.transcribe(sound(20))
    assert len(heard) > 1
    assert all(len(ids) <= 128 // 2 + 2 for ids in heard)


@pytest.mark.parametrize("nothing", [np.zeros(RATE * 2), np.zeros(3), np.full(100, 0.5)])
def test_silence_and_what_is_too_short_say_nothing(lm, nothing):
    assert lm.transcribe(nothing.astype(np.float32)) == ""
    text = lm.transcribe([sound(1), nothing.astype(np.float32), sound(2)], SHORT)
    assert [bool(one) for one in text] == [True, False, True]


def test_recordings_that_cannot_be_read(lm, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.wav: no such file"):
        lm.transcribe(tmp_path / "nothing.wav")
    with pytest.raises(UserError, match="not a finite number"):
        lm.transcribe(np.array([0.0, np.nan], np.float32))


# ---- speaking


def ended(wave):
    """Speech as it is given: with silence behind it. What the tests' vocoder says is loud from its first sample."""
    return np.concatenate(list(to_silence([wave])))


def test_speech_is_the_vocoder_on_tts(lm):
    ids = generate(lm.model, lm.vocabulary, [prompt(TASKS["tts"], lm.vocabulary, "The sea")], Modality.SPEECH, SHORT)[0]
    units = merge_repeats(lm.vocabulary.decode_units(ids))[0].tolist()
    wave, rate = lm.speak("The sea!", SHORT)
    np.testing.assert_array_equal(wave, ended(lm.vocoder.synthesize([units], merged=True)[0]))
    assert rate == RATE
    assert wave.dtype == np.float32


def test_of_several_answers_that_is_spoken_in_which_the_text_is_heard(lm, monkeypatch):
    asked, chosen = [], []
    search, choose = speaking.candidates, speaking.best_units
    monkeypatch.setattr(
        speaking, "candidates", lambda *given, **more: asked.append(given[-1]) or search(*given, **more)
    )
    monkeypatch.setattr(speaking, "best_units", lambda *given: chosen.append(choose(*given)) or chosen[-1])
    wave, _ = lm.speak("the sea")
    assert asked == [speech_lm.SPEAKING]
    np.testing.assert_array_equal(wave, ended(lm.vocoder.synthesize(chosen[0], merged=True)[0]))
    lm.speak("the sea", SHORT)
    assert asked[-1] == SHORT


@pytest.mark.parametrize("options", [None, SHORT, GenerationOptions("beam", beams=2, max_pieces=8)])
def test_what_is_read_out_begins_with_a_pause_where_units_tell_pauses(lm, monkeypatch, options):
    texts, spoken = ["the sea", "what time is it", "she"], []
    synthesize, pauses = lm.vocoder.synthesize, np.array([3, 7])
    monkeypatch.setattr(lm.vocoder, "synthesize", lambda units, **how: spoken.append(units) or synthesize(units, **how))
    lm.speak(texts, options)
    assert not all(units[0] in pauses for units in spoken[0])
    monkeypatch.setattr(Codebook, "pauses", pauses)
    whole = lm.speak(texts, options)
    assert all(units[0] in pauses for units in spoken[1])
    assert not all(unit in pauses for units in spoken[1] for unit in units)
    streamed = np.concatenate(list(lm.stream(texts[0], options or speech_lm.SPEAKING)))
    np.testing.assert_allclose(streamed, whole[0][0], atol=1e-3)


def test_many_texts_are_spoken_as_one_by_one(lm):
    texts = ["the sea", "what time is it", "she"]
    for (wave, _), text in zip(lm.speak(texts, SHORT), texts, strict=True):
        np.testing.assert_allclose(wave, lm.speak(text, SHORT)[0], atol=1e-3)


def test_long_texts_are_cut_and_joined(make):
    lm = make(limits=Limits(words=4))
    wave, _ = lm.speak("what time is it? the sea, the sea.", SHORT)
    first, last = (lm.speak(part, SHORT)[0] for part in ("what time is it?", "the sea, the sea."))
    alone = np.trim_zeros(first, "b")  # silence is put behind the last part only
    np.testing.assert_allclose(wave, np.concatenate([alone, np.zeros(3200), last]), atol=1e-3)


def test_units_with_repeats_are_one_frame_each(make, repeating_vocabulary):
    lm = make(vocabulary=repeating_vocabulary)
    ids = generate(lm.model, lm.vocabulary, [prompt(TASKS["tts"], lm.vocabulary, "sea")], Modality.SPEECH, SHORT)[0]
    spoken = np.trim_zeros(lm.speak("sea", SHORT)[0], "b")
    assert len(spoken) == len(lm.vocabulary.decode_units(ids)) * 384


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"method": "beam", "beams": 1},
        {"method": "beam", "beams": 2},
        {"method": "sample", "seed": 3},
        {"method": "sample", "draws": 3},
    ],
)
@pytest.mark.parametrize("merge", [True, False])
def test_streamed_speech_is_what_is_spoken(make, joint_vocabulary, repeating_vocabulary, merge, way):
    lm = make(vocabulary=joint_vocabulary if merge else repeating_vocabulary, limits=Limits(words=4))
    options = GenerationOptions(max_pieces=8, **way)
    text = "what time is it? the sea, the sea."
    chunks = list(lm.stream(text, options, chunk=2))
    assert len(chunks) > 4
    np.testing.assert_allclose(np.concatenate(chunks), lm.speak(text, options)[0], atol=1e-3)


def test_speech_is_streamed_before_the_model_has_ended(make, repeating_vocabulary, monkeypatch):
    """The vocoder of the tests looks 24 frames ahead: a chunk is there while most pieces are not yet asked for."""
    lm = make(vocabulary=repeating_vocabulary)
    asked = []
    forward = lm.model.forward
    monkeypatch.setattr(lm.model, "forward", lambda *given, **named: asked.append(1) or forward(*given, **named))
    stream = lm.stream("the sea", GenerationOptions(max_pieces=200, min_pieces=200), chunk=1)
    next(stream)
    at_first = len(asked)
    stream.close()  # nobody wants the rest: the model stops
    assert at_first < 100
    assert len(asked) < 200
    monkeypatch.undo()
    assert lm.speak("the sea", SHORT)[0].any()


def test_what_breaks_while_it_streams_is_said(lm, monkeypatch):
    def broken(*given, **named):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lm.model, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(lm.stream("the sea", SHORT))


# ---- voices


@pytest.fixture
def many(lm, joint_vocabulary, codebook, monkeypatch, tmp_path):
    """A SpeechLM whose vocoder has two voices, and a speaker encoder that tells them apart by their loudness."""
    torch.manual_seed(0)
    config = VocoderConfig.preset("small", units=UNITS, channels=16, embedding=8, speaker_dim=2)
    generator, durations = UnitGenerator(config), DurationPredictor(UNITS, speaker_dim=2)
    for layer in (*generator.films, durations.speaker):
        torch.nn.init.normal_(layer.weight, 0, 0.3)

    class Loud(SpeakerEncoder):
        name, dimension, fingerprint = "loud", 2, "f00d"
        _windows = staticmethod(lambda waveform: [waveform])
        _forward = staticmethod(lambda windows: np.stack([0.1 + 0 * windows.std(1), windows.std(1)], axis=1))

    monkeypatch.setattr(speaker_table, "load_speaker_encoder", lambda name: Loud())
    table = SpeakerTable(("ann", "bob"), np.eye(2, dtype=np.float32), "bob", "loud", "f00d")
    Vocoder(generator, durations, codebook.fingerprint, table).save(tmp_path / "voices")
    return SpeechLM(lm.model, joint_vocabulary, codebook, Vocoder.load(tmp_path / "voices"))


def test_it_speaks_in_the_voice_that_is_asked_for(many, tmp_path):
    by_ann, by_bob, unasked = (many.speak("the sea", SHORT, voice=voice)[0] for voice in ("ann", "bob", None))
    np.testing.assert_array_equal(by_bob, unasked)
    assert not np.array_equal(by_ann, by_bob)
    wave = sound(1)
    save_audio(tmp_path / "he.wav", wave)
    embedding = many.vocoder.embedding(wave)
    for voice in (str(tmp_path / "he.wav"), wave, embedding):
        np.testing.assert_allclose(
            many.speak("the sea", SHORT, voice=voice)[0],
            many.speak("the sea", SHORT, voice=embedding)[0],
            atol=1e-2,
        )
    streamed = np.concatenate(list(many.stream("the sea", SHORT, voice="ann")))
    np.testing.assert_allclose(streamed, by_ann, atol=1e-3)
    with pytest.raises(UserError, match="voice 'anna': no such voice"):
        many.stream("the sea", SHORT, voice="anna")


def test_what_goes_on_keeps_the_voice_of_its_beginning(many):
    # The pulses' phase adds up the rounding of every frame's pitch, which is another for two at once than for one; in
    # float64 nothing of it is left, and a voice that is only like the other cannot pass.
    many.vocoder.generator.double()
    many.vocoder.duration_predictor.double()
    waves = [sound(2), 0.2 * sound(2)]
    own = many.continue_speech(waves, SHORT)
    for (wave, _), beginning in zip(own, waves, strict=True):
        told = many.continue_speech(beginning, SHORT, voice=many.vocoder.embedding(beginning))[0]
        np.testing.assert_allclose(wave, told, atol=1e-9)
        assert not np.array_equal(wave, many.continue_speech(beginning, SHORT, voice="ann")[0])
    assert many.continue_speech([], SHORT) == []


def test_errors_name_the_file_that_nobody_speaks_in(many, tmp_path):
    for name, samples, told in (("silent", RATE, "is silent"), ("short", 800, "too short")):
        file = str(tmp_path / f"{name}.wav")
        save_audio(file, np.zeros(samples, np.float32))
        for call in (
            lambda file=file: many.speak("the sea", SHORT, voice=file),
            lambda file=file: many.continue_speech(file, SHORT),
        ):
            with pytest.raises(UserError, match=told) as caught:
                call()
            assert str(caught.value).startswith(f"{file}: ")
    save_audio(tmp_path / "none.wav", np.zeros(5, np.float32))
    with pytest.raises(UserError, match=r"none\.wav: too short to be continued"):
        many.continue_speech(tmp_path / "none.wav", SHORT)


def test_voices_come_back_with_the_folder(many, tmp_path):
    many.save(tmp_path / "many")
    loaded = SpeechLM.load(tmp_path / "many")
    assert loaded.vocoder.voices.names == ("ann", "bob")
    np.testing.assert_allclose(
        loaded.speak("the sea", SHORT, voice="ann")[0], many.speak("the sea", SHORT, voice="ann")[0], atol=1e-6
    )


def test_one_voice_cannot_be_asked_for_another(lm):
    with pytest.raises(UserError, match="speaks with one voice alone"):
        lm.speak("the sea", SHORT, voice="ann")


def test_letters_of_other_alphabets_are_said_as_latin_ones(lm):
    for foreign, latin in (
        ("the s\u00e9\u0101", "the sea"),
        ("\u0442he 一", "the yi"),
        ("\u00bd sea", "one half sea"),
        ("5\u00bd m\u00b2", "five and a half square meters"),
    ):
        np.testing.assert_array_equal(lm.speak(foreign, SHORT)[0], lm.speak(latin, SHORT)[0])


def test_what_cannot_be_said(lm, joint_vocabulary):
    for text in ("", "  ", "!!! ...", "\u0640"):
        with pytest.raises(UserError, match="nothing in it that can be said"):
            lm.speak(text)
    for wrong, named in ((5, "5: int"), (["the sea", None], "None: NoneType")):
        with pytest.raises(UserError, match=rf"^{named} \(expected str\)$"):
            lm.speak(wrong)
    mute = SpeechLM(lm.model, joint_vocabulary, lm.codebook)
    for call in (lambda: mute.speak("a"), lambda: mute.stream("a"), lambda: mute.continue_speech(sound(1))):
        with pytest.raises(UserError, match="has no vocoder"):
            call()


def test_without_a_vocoder_it_still_listens(lm, joint_vocabulary, tmp_path):
    SpeechLM(lm.model, joint_vocabulary, lm.codebook).save(tmp_path / "mute")
    mute = SpeechLM.load(tmp_path / "mute")
    assert mute.vocoder is None
    assert mute.transcribe(sound(2), SHORT) == lm.transcribe(sound(2), SHORT)


# ---- going on


def test_text_goes_on(make, vocabulary):
    lm = make(vocabulary=vocabulary)
    task = TASKS["textlm"]
    ids = generate(lm.model, vocabulary, [continuation_prompt(task, vocabulary, "the train")], Modality.TEXT, SHORT)[0]
    text = lm.continue_text("the train", SHORT)
    assert text == vocabulary.decode_text([*vocabulary.encode_text("the train"), *ids])
    assert text.startswith("the train")
    assert len(text) > len("the train")
    sampled = GenerationOptions(method="sample", max_pieces=8)
    assert lm.continue_text(["the train", "she"], sampled)[0] == lm.continue_text("the train", sampled)
    assert isinstance(lm.continue_text("", SHORT), str)


def test_letters_that_it_does_not_know_are_written_in_those_it_does():
    lm, options = sparq.load(), GenerationOptions(max_pieces=4)
    for foreign, latin in (("Ça va", "ca va"), ("東京", "dong jing")):
        assert lm.continue_text(foreign, options).startswith(latin.split()[0])


@pytest.mark.parametrize("text", ["word " * 2000, "a" * 2000])
def test_a_text_too_long_to_go_on_is_named(make, vocabulary, text):
    lm = make(vocabulary=vocabulary)
    with pytest.raises(UserError, match=rf"^text '{text[:10]}.*': too long to go on \(\d+ pieces of at most \d+\)$"):
        lm.continue_text(text, SHORT)


def test_a_word_too_long_to_be_said_is_named(make, vocabulary):
    with pytest.raises(UserError, match=r"^text 'sesesese.*': too long a word \(\d+ pieces of at most \d+\)$"):
        make(vocabulary=vocabulary).speak("the train " + "se" * 2000, SHORT)


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, told in (("cuda", "device: cuda .there is no such GPU"), ("gpu", "device: 'gpu' is not known")):
        with pytest.raises(UserError, match=told):
            sparq.load(device=device)


@pytest.mark.parametrize("merge", [True, False])
def test_speech_goes_on(make, joint_vocabulary, repeating_vocabulary, merge):
    vocabulary = joint_vocabulary if merge else repeating_vocabulary
    lm = make(vocabulary=vocabulary)
    wave = sound(2)
    (heard,) = UnitExtractor(Loudness(), lm.codebook).extract([wave])
    spoken = []
    synthesize = lm.vocoder.synthesize
    lm.vocoder.synthesize = lambda units, **how: spoken.append((units, how)) or synthesize(units, **how)
    try:
        made, rate = lm.continue_speech(wave, SHORT)
    finally:
        del lm.vocoder.synthesize
    ((units,), how) = spoken[0]
    assert how == {"merged": False, "speaker": None}
    assert units[: len(heard)] == heard.tolist(), "what was heard keeps its timing"
    assert len(units) > len(heard)
    assert len(made) == len(units) * 384
    assert rate == RATE


def test_speech_that_cannot_go_on(make):
    lm = make(positions=64)
    with pytest.raises(UserError, match="recording 1: too short"):
        lm.continue_speech([sound(1), np.zeros(5, np.float32)])
    with pytest.raises(UserError, match="only 64 positions"):
        lm.continue_speech(sound(20))


@pytest.mark.parametrize(("limits", "message"), [((1.0, 5), "limits.seconds: 1.0"), ((9.0, 0), "limits.words: 0")])
def test_impossible_limits(limits, message):
    with pytest.raises(UserError, match=message):
        Limits(*limits)


def test_loading_draws_no_progress_bars(lm, tmp_path: Path, capfd):
    lm.save(tmp_path / "lm")
    SpeechLM.load(tmp_path / "lm")
    out, err = capfd.readouterr()
    assert not out + err
