"""Figure 4 shows what the last layer computes, in files and in a page, and every colour means the same in all models."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from sparq.attention import install
from sparq.corpus.corpus import Corpus
from sparq.corpus.utterance import Utterance
from sparq.errors import UserError
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS, example
from sparq.paper.drawing import _lean
from sparq.paper.figures import OutlierBar, save_outlier_bars
from sparq.paper.heatmaps import HeadMaps, _draw, draw_heatmaps, head_maps, heatmaps, strongest_heads


@pytest.fixture(scope="module")
def models(tiny_run):
    return {sink: SpeechLM.load(tiny_run.folder / sink / "speechlm") for sink in ("none", "max")}


@pytest.fixture(scope="module")
def utterance(tiny_run):
    return Corpus.load(tiny_run.folder / "corpus").utterances("held_out")[0]


def computed_directly(lm, ids):
    """Probabilities, values and products of the only layer, from its weights, by the textbook."""
    model = lm.model
    layer, heads = model.model.layers[0], model.config.num_attention_heads
    with torch.no_grad():
        x = layer.input_layernorm(model.model.embed_tokens(torch.tensor([ids])))
        q, k, v = (
            getattr(layer.self_attn, f"{name}_proj")(x)[0].unflatten(-1, (heads, -1)).transpose(0, 1) for name in "qkv"
        )
        cos, sin = (part[0] for part in model.model.rotary_emb(x, torch.arange(len(ids))[None]))

        def turned(states):
            one, other = states.chunk(2, -1)
            return states * cos + torch.cat([-other, one], -1) * sin

        scores = turned(q) @ turned(k).mT / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
        return torch.softmax(scores, -1).numpy(), v.numpy()


def test_maps_are_the_softmax_of_the_last_layer(models, utterance):
    vanilla, shifted = (head_maps(sink, lm, utterance) for sink, lm in models.items())
    lm = models["none"]
    ids = example(TASKS["asr"], lm.vocabulary, text=utterance.text, units=utterance.units).input_ids
    wanted, values = computed_directly(lm, ids)
    np.testing.assert_allclose(vanilla.probabilities, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vanilla.values, values, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vanilla.weighted, wanted @ values, rtol=1e-4, atol=1e-6)
    ordinary, _ = computed_directly(models["max"], ids)
    wanted = ordinary / (1 + ordinary.max(-1, keepdims=True))  # what max-shift is, read literally
    np.testing.assert_allclose(shifted.probabilities, wanted, rtol=1e-4, atol=1e-6)
    speech = len(lm.vocabulary.encode(TASKS["asr"].prompt_line(lm.vocabulary, utterance.units))) - 1
    assert vanilla.text_from == speech
    assert vanilla.layer == 0


def test_gates_weigh_what_is_drawn(models, utterance):
    lm = models["none"]
    plain = head_maps("none", lm, utterance)
    install(lm.model, "none", gate="per_token", gate_pretrained=False)
    try:
        gated = head_maps("gated", lm, utterance)
    finally:
        install(lm.model, "none")
    np.testing.assert_array_equal(gated.probabilities, plain.probabilities)
    ratio = gated.weighted / plain.weighted
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-3)
    assert 0 < ratio.min() < ratio.max() < 1


def maps(sink="none", scale=1.0):
    random = np.random.default_rng(0)
    return HeadMaps(sink, 1, random.random((4, 9, 9)), *scale * random.normal(size=(2, 4, 9, 5)), text_from=6)


def test_strongest_heads():
    one = maps()
    one.probabilities[:, 1:, 0] = np.array([0.1, 0.4, 0.2, 0.3])[:, None]
    one.probabilities[0, 0, 0] = 9  # the first token's own attention does not count
    assert strongest_heads(one) == [1, 3, 2]


def test_scales_are_shared():
    from sparq.paper.drawing import FILE

    figure = _draw([maps(), maps("max", 10.0)], None, FILE)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 2 * 3 * 3
    probability, value, weighted = (images[kind::3] for kind in range(3))
    assert {image.norm.vmax for image in probability} == {1}
    for kind in (value, weighted):
        (limits,) = {(image.norm.vmin, image.norm.vmax) for image in kind}
        assert limits[1] == -limits[0] > 5


def test_files(models, utterance, tmp_path):
    draw_heatmaps(models, utterance, tmp_path / "a.png", [1])
    made = draw_heatmaps(models, utterance, tmp_path / "b.svg", [1])
    assert [one.sink for one in made] == ["none", "max"]
    assert Image.open(tmp_path / "a.png").width > 1000
    text = (tmp_path / "b.svg").read_text()
    assert text.count("data:image/png") == 2 * 3 + 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.svg"]
    before = (tmp_path / "b.svg").read_bytes()
    draw_heatmaps(models, utterance, tmp_path / "b.svg", [1])
    assert (tmp_path / "b.svg").read_bytes() == before
    save_outlier_bars([OutlierBar("none", "text", 2.0, 3.0)], tmp_path / "c.svg")
    assert "#c8501a" in (tmp_path / "c.svg").read_text()


def test_in_a_page_it_is_small():
    random = np.random.default_rng(0)
    wide = HeadMaps("none", 5, random.random((3, 150, 150)), *random.normal(size=(2, 3, 150, 64)), text_from=110)
    page = heatmaps([wide], [0])
    assert 3 * 3 * len(page) < 500_000  # three heads of three models
    for word in ("vanilla", "speech", "text", "head 1", "value"):
        assert f">{word}</text>" in page


def test_images_keep_their_colours():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 4), dtype=np.uint8)[random.integers(0, 40, (30, 20))]
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "png")
    before = f'<image xlink:href="data:image/png;base64,\n{base64.b64encode(buffer.getvalue()).decode()}"/>'
    after = _lean(before)
    assert len(after) < len(before)
    content = re.search(r'base64,([^"]*)"', after)[1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA")), pixels)
    photo = random.integers(0, 256, (40, 40, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(photo, "RGBA").save(buffer, "png")
    many = f'<image xlink:href="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"/>'
    assert _lean(many) == many


@pytest.mark.parametrize(
    ("name", "told"), [("a.jpg", "ends with .svg, .png"), ("no/a.png", "no is no folder"), ("b.svg", "is a folder")]
)
def test_files_that_cannot_be_written(tmp_path, name, told):
    (tmp_path / "b.svg").mkdir()
    with pytest.raises(UserError, match=told):
        save_outlier_bars([OutlierBar("none", "text", 2.0, 3.0)], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["b.svg"]


def test_a_sample_without_speech(models):
    with pytest.raises(UserError, match="task asr"):
        head_maps("none", models["none"], Utterance("only text", np.zeros(0, np.int64)))
