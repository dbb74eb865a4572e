"""Both vocabulary modes: round trips, modalities, saving, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.errors import UserError
from sparq.language.vocabulary import ExtendedVocabulary, JointVocabulary, Modality, load_vocabulary
from sparq.language.writing import CONTROL_PATTERN, CONTROLS, UNIT_ORIGIN, normalise_text, unit_characters

UNITS = 12
LETTERS = "abcdefghijklmnopqrstuwxyz'"  # what the small corpus holds of the alphabet
words = st.lists(st.text(LETTERS, min_size=1, max_size=7), min_size=1, max_size=6)
unit_sequences = st.lists(st.integers(0, UNITS - 1), max_size=40)
relaxed = settings(deadline=None, max_examples=60)


def merged(units):
    return [u for i, u in enumerate(units) if i == 0 or u != units[i - 1]]


def test_units_are_ideographs():
    assert unit_characters([0, 1, 199]) == "\u4e00\u4e01\u4ec7"


@pytest.mark.parametrize(
    ("how", "written"),
    [
        ("none", "Hello there, it\u2019s ME \u2013 me_2!"),
        ("lower", "hello there, it's me \u2013 me_2!"),
        ("letters", "hello there it's me me two"),
    ],
)
def test_normalisation(how, written):
    assert normalise_text(" Hello  there, it\u2019s ME \u2013\nme_2! ", how) == written


@pytest.mark.parametrize("how", ["lower", "letters"])
def test_accents_that_are_characters_of_their_own_cut_no_words(how):
    assert normalise_text("nai\u0308ve cafe\u0301s", how) == "na\u00efve caf\u00e9s"
    assert normalise_text("\u0130stanbul", how) == "istanbul"


@pytest.mark.parametrize("text", ["a <generatetext> b", "<startofspeech>", "一 is one", chr(0x9FFF)])
@pytest.mark.parametrize("how", ["none", "lower", "letters"])
def test_text_cannot_smuggle_controls_or_units(text, how):
    with pytest.raises(UserError, match="control token or a character that stands for a speech unit"):
        normalise_text(text, how)


@relaxed
@given(words)
def test_text_round_trip(vocabulary, words):
    text = " ".join(words)
    ids = vocabulary.encode_text(text)
    assert vocabulary.decode_text(ids) == text
    assert {vocabulary.modality[i] for i in ids} == {Modality.TEXT}
    assert vocabulary.decode_units(ids) == []


@relaxed
@given(
    st.text(st.characters(exclude_categories=["Cs", "Lo"]), max_size=30).filter(lambda t: not CONTROL_PATTERN.search(t))
)
def test_any_text_round_trips_in_a_byte_level_vocabulary(extended_vocabulary, text):
    ids = extended_vocabulary.encode_text(text)
    assert extended_vocabulary.decode_text(ids) == " ".join(text.split())


@relaxed
@given(unit_sequences)
def test_unit_round_trip(vocabulary, units):
    ids = vocabulary.encode_units(units)
    assert vocabulary.decode_units(ids) == merged(units)
    assert {int(vocabulary.modality[i]) for i in ids} <= {Modality.SPEECH}
    assert vocabulary.decode_text(ids) == ""
    assert vocabulary.encode_units(np.array(units, np.int32)) == ids


@relaxed
@given(unit_sequences)
def test_unit_round_trip_with_repeats(repeating_vocabulary, units):
    assert repeating_vocabulary.decode_units(repeating_vocabulary.encode_units(units)) == units


@relaxed
@given(words, unit_sequences)
def test_controls_stand_alone(vocabulary, words, units):
    """Pieces never reach across a control token, so a line is encoded part by part."""
    text, speech = " " + " ".join(words), vocabulary.write_units(units)
    for control in CONTROLS:
        whole = vocabulary.encode(f"{text}{control}{speech}")
        assert whole == [*vocabulary.encode(text), vocabulary.control(control), *vocabulary.encode(speech)]


def test_every_id_has_its_modality(vocabulary):
    assert vocabulary.modality.shape == (vocabulary.size,)
    assert set(vocabulary.modality.tolist()) == {Modality.CONTROL, Modality.TEXT, Modality.SPEECH}
    special = [vocabulary.pad_id, vocabulary.end_id, *map(vocabulary.control, CONTROLS)]
    assert len(set(special)) == 6
    assert all(vocabulary.modality[i] == Modality.CONTROL for i in special)
    for index in range(vocabulary.size):
        units, text = vocabulary.decode_units([index]), vocabulary.decode_text([index])
        if vocabulary.modality[index] == Modality.SPEECH:
            assert units
            assert all(0 <= u < UNITS for u in units)
            assert not text
        else:
            assert not units
        if vocabulary.modality[index] == Modality.CONTROL:
            assert not text


def test_every_unit_has_an_id_of_its_own(vocabulary):
    ids = [vocabulary.encode_units([u]) for u in range(UNITS)]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == UNITS


def test_units_that_no_line_holds_have_one_too(extended_vocabulary):
    units = 40  # the lines have seven of them
    lines = ["\u4e00\u4e01\u4e02", "\u4e03\u4e04\u4e05\u4e06"] * 20
    learnt = ExtendedVocabulary.train(lines, units, units, extended_vocabulary._tokenizer)
    assert [learnt.decode_units(learnt.encode_units([unit])) for unit in range(units)] == [[u] for u in range(units)]


@pytest.mark.parametrize("target", [Modality.TEXT, Modality.SPEECH])
def test_allowed(vocabulary, target):
    mask = vocabulary.allowed(target)
    assert mask.dtype == bool
    assert mask[vocabulary.end_id]
    assert not mask[vocabulary.pad_id]
    mask[vocabulary.end_id] = False
    np.testing.assert_array_equal(mask, vocabulary.modality == target)
    assert vocabulary.modality[vocabulary.end_id] == Modality.CONTROL


def test_joint_order_is_voxtlms(joint_vocabulary):
    assert joint_vocabulary.pad_id == 0
    assert sorted(map(joint_vocabulary.control, CONTROLS)) == [2, 3, 4, 5]
    assert joint_vocabulary.end_id == joint_vocabulary.size - 1 == 109


def test_extended_keeps_the_tokenizers_ids(extended_vocabulary):
    ids = extended_vocabulary.encode("the train")
    assert ids == extended_vocabulary._tokenizer.encode("the train")
    assert max(ids) < extended_vocabulary.text_size
    assert extended_vocabulary.end_id == extended_vocabulary._tokenizer.eos_token_id
    assert (
        min(extended_vocabulary.encode_units(range(UNITS)))
        > extended_vocabulary.pad_id
        >= extended_vocabulary.text_size
    )


def test_frequent_runs_become_pieces(joint_vocabulary):
    assert len(joint_vocabulary.encode_units([10, 11] * 20)) < 40


def test_saved_and_loaded(vocabulary, tmp_path: Path):
    vocabulary.save(tmp_path)
    loaded = load_vocabulary(tmp_path)
    assert type(loaded) is type(vocabulary)
    assert loaded.fingerprint == vocabulary.fingerprint
    line = "<startoftext> the train isn't<generatespeech>" + unit_characters([3, 1, 4, 1, 5])
    assert loaded.encode(line) == vocabulary.encode(line)
    np.testing.assert_array_equal(loaded.modality, vocabulary.modality)
    for name in ("mode", "size", "units", "deduplicate", "normalisation", "pad_id", "end_id"):
        assert getattr(loaded, name) == getattr(vocabulary, name)


def test_fingerprints_tell_settings_apart(joint_vocabulary, make_joint):
    assert make_joint().fingerprint == joint_vocabulary.fingerprint, "training is the same again"
    assert make_joint(deduplicate=False).fingerprint != joint_vocabulary.fingerprint
    assert make_joint(normalisation="lower").fingerprint != joint_vocabulary.fingerprint


def test_changed_files_are_refused(vocabulary, make_joint, tmp_path: Path):
    vocabulary.save(tmp_path)
    name = "joint.model" if vocabulary.mode == "joint" else "speech.model"
    (tmp_path / name).write_bytes(JointVocabulary.train(["<generatetext> a"], 21, UNITS)._model)
    with pytest.raises(UserError, match="were changed after"):
        load_vocabulary(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="damaged vocabulary"):
        load_vocabulary(tmp_path)
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(UserError, match="damaged vocabulary") as caught:
        load_vocabulary(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not a SpARQ vocabulary folder"):
        load_vocabulary(tmp_path / "nowhere")


@pytest.mark.parametrize(("units", "named"), [([0, -1], "-1"), ([3, UNITS], "12"), ([0x5E00], "24064")])
def test_units_outside_the_codebook(vocabulary, units, named):
    with pytest.raises(UserError, match=f"unit {named}: outside 0 to 11"):
        vocabulary.write_units(units)


@pytest.mark.parametrize("units", [0, 0x9FFF - UNIT_ORIGIN + 2])
def test_impossible_codebooks(joint_vocabulary, units):
    with pytest.raises(UserError, match=f"units: {units} "):
        JointVocabulary.train(["<startoftext> a<generatespeech>一"], 20, units)
    with pytest.raises(UserError, match=f"units: {units} "):
        JointVocabulary(joint_vocabulary._model, units, deduplicate=True, normalisation="letters")


def test_too_many_pieces_are_refused(make_joint):
    with pytest.raises(UserError, match=r"vocabulary\.size: 5000 pieces cannot be learnt"):
        JointVocabulary.train(["<startoftext> a b c<generatespeech>一丁"], 5000, 2)
    with pytest.raises(UserError, match=r"vocabulary\.size"):
        JointVocabulary.train([], 100, 2)


def test_a_tokenizer_without_an_end_is_refused(extended_vocabulary):
    class Endless:
        eos_token_id = None
        name_or_path = "endless"

    with pytest.raises(UserError, match="endless: has no end-of-sequence token"):
        ExtendedVocabulary(Endless(), extended_vocabulary._model, UNITS, deduplicate=True, normalisation="none")


def test_repeats_are_merged_only_if_asked(vocabulary, repeating_vocabulary):
    assert vocabulary.deduplicate
    assert vocabulary.write_units([1, 1, 2, 2, 1]) == unit_characters([1, 2, 1])
    assert repeating_vocabulary.write_units([1, 1, 2, 2, 1]) == unit_characters([1, 1, 2, 2, 1])
    assert all(a != b for a, b in pairwise(vocabulary.write_units([5] * 3 + [6] * 2 + [5])))
