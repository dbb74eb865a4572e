from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from sparq.language.card import UNKNOWN, Card, card_licence, model_card, read_card, write_card

CARD = Card(
    title="mine",
    summary="It listens.",
    base="speechlm-max",
    licence="apache-2.0",
    licence_note="Ask first.",
    usage=("sparq transcribe --model FOLDER talk.wav",),
    data={"recordings": "my | voice\n# heading", "speech": "12.0 minutes"},
    method={"steps": 40},
    columns=("none", "max", "zero"),
    measured={"word error rate %": (14.49, None, 1234.5)},
    measured_on="On 8 recordings.",
    limits=("One voice\nalone.",),
    made={"date": "2026-01-02"},
)


def test_the_hub_reads_the_metadata():
    """By huggingface_hub's own reader."""
    card = ModelCard(model_card(CARD))
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "sparq"
    assert "automatic-speech-recognition" in card.data.tags
    assert card.text.startswith("\n# mine\n\nIt listens.\n")


def test_every_fact_is_there_once():
    text = model_card(CARD)
    for line in (
        "| recordings | my \\| voice # heading |",
        "| steps | 40 |",
        "|  | none | max | zero |\n| --- | ---: | ---: | ---: |\n| word error rate % | 14.49 | – | 1,234.50 |",
        "On 8 recordings.",
        "- One voice alone.",
        "The base weights: apache-2.0. Ask first.",
        "| date | 2026-01-02 |",
        "```\nsparq transcribe --model FOLDER talk.wav\n```",
    ):
        assert text.count(line) == 1, line
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["Use", "Data", "Method", "Measured", "Limits", "Licence", "Made"]


def test_what_is_not_known_is_left_out_or_said():
    text = model_card(Card(title="mine", summary="It listens.", base="theirs"))
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Licence"]
    assert "look up where theirs came from" in text
    assert "license" not in text
    assert "The weights: mit." in model_card(Card(title="new", summary="It listens.", licence="mit"))


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (model_card(CARD), "apache-2.0"),
        (model_card(Card(title="mine", summary="It listens.")), UNKNOWN),
        ("---\nlicense: [a, b]\n---\n", UNKNOWN),
        ("---\nlicense: {\n---\n", UNKNOWN),
        ("no metadata", UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_a_licence_is_read_from_a_card(tmp_path, text, licence):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert card_licence(tmp_path) == licence


def test_a_card_goes_along(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "README.md").write_text("---\nlicense: mit\n---\n\n# A title\n\nThe card.\n")
    write_card(tmp_path / "two", read_card(tmp_path / "one"))
    assert read_card(tmp_path / "two") == read_card(tmp_path / "one")
    write_card(tmp_path / "two", read_card(tmp_path / "one"), "Made\nsmaller.")
    assert read_card(tmp_path / "two").split("\n\n")[1:] == ["# A title", "**Made smaller.**", "The card.\n"]
    assert card_licence(tmp_path / "two") == "mit"
    assert read_card(tmp_path / "three") == ""
    write_card(tmp_path / "three", "")
    assert not (tmp_path / "three").exists()
