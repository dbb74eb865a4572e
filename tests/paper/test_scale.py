"""Scales: recipes and what differs from them."""

from __future__ import annotations

import pytest

from sparq.errors import UserError
from sparq.paper.scale import FULL, Adaptation, load_scale, shipped_scales

WAYS = (FULL, Adaptation("lora"), Adaptation("lora", 512), Adaptation("qlora", bits=4), Adaptation("qlora", bits=8))


@pytest.mark.parametrize("name", shipped_scales())
def test_every_shipped_scale_makes_recipes(name):
    scale = load_scale(name)
    assert scale.name == name
    for way in WAYS:
        recipe = scale.cell(way, seed=3)
        adaptation = recipe.adaptation
        assert (adaptation.method, adaptation.seed, str(recipe.folder)) == (way.method, 3, f"runs/paper-{name}")
        if way.method != "full":
            assert adaptation.lora.rank == adaptation.lora.alpha == way.rank // scale.rank_divisor
        if way.method == "qlora":
            assert adaptation.qlora.bits == way.bits
        assert not recipe.quantization


def test_adaptations_have_names_of_their_own():
    assert [way.name for way in WAYS] == ["full", "lora-256", "lora-512", "qlora4-256", "qlora8-256"]


def test_the_corpus_is_the_same_however_a_model_is_adapted():
    for name in shipped_scales():
        recipes = [load_scale(name).cell(way, seed) for way in WAYS for seed in (0, 1)]
        for part in ("corpus", "vocabulary", "vocoder", "model", "evaluation"):
            assert len({repr(getattr(recipe, part)) for recipe in recipes}) == 1


def test_the_user_has_the_last_word():
    recipe = load_scale("demo").cell(FULL, 0, ["adaptation.steps=7", "evaluation.sentences=2", "output=here"])
    assert (recipe.adaptation.steps, recipe.evaluation.sentences, str(recipe.folder)) == (7, 2, "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\n", "description: missing"),
        ("{name: a, description: b, recipe: demo, stands_for: GPT}", 'stands_for: "GPT"'),
        ("{name: a, description: b, recipe: demo, stands_for: OPT-125m, ranks: 3}", "ranks: unknown key"),
    ],
)
def test_a_scale_of_ones_own_is_checked(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_scale(str(path))


def test_an_unknown_scale():
    with pytest.raises(UserError, match=r"--scale: dem .*did you mean demo"):
        load_scale("dem")
    with pytest.raises(UserError, match=r"--scale: none\.yaml: cannot be read"):
        load_scale("none.yaml")
    scale = load_scale("demo")
    with pytest.raises(UserError, match=r"adaptation\.stepz: unknown key"):
        scale.cell(FULL, 0, ["adaptation.stepz=1"])
