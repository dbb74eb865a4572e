"""The layouts and loss masks of VoxtLM, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.errors import UserError
from sparq.language.tasks import IGNORED, TASKS, continuation_prompt, example, prompt
from sparq.language.vocabulary import Modality

TEXT = "The TRAIN leaves"
UNITS = [2, 2, 0, 11, 11, 11, 3]

# Units 2, 0, 11, 3 are the characters U+4E02, U+4E00, U+4E0B, U+4E03; every space counts.
LINES = {
    "textlm": "<generatetext> the train leaves",
    "speechlm": "<generatespeech> \u4e02\u4e00\u4e0b\u4e03",
    "asr": "<startofspeech>\u4e02\u4e00\u4e0b\u4e03<generatetext> the train leaves",
    "tts": "<startoftext> the train leaves<generatespeech>\u4e02\u4e00\u4e0b\u4e03",
}
PROMPTS = {
    "textlm": "<generatetext>",
    "speechlm": "<generatespeech>",
    "asr": "<startofspeech>\u4e02\u4e00\u4e0b\u4e03<generatetext>",
    "tts": "<startoftext> the train leaves<generatespeech>",
}


def test_the_four_tasks():
    text, speech = Modality.TEXT, Modality.SPEECH
    assert {name: (t.name, t.condition, t.target) for name, t in TASKS.items()} == {
        "textlm": ("textlm", None, text),
        "speechlm": ("speechlm", None, speech),
        "asr": ("asr", speech, text),
        "tts": ("tts", text, speech),
    }


@pytest.mark.parametrize("name", TASKS)
def test_golden_lines(joint_vocabulary, name):
    task = TASKS[name]
    line = task.line(joint_vocabulary, text=TEXT, units=UNITS)
    assert line.encode() == LINES[name].encode()
    condition = {None: None, Modality.TEXT: TEXT, Modality.SPEECH: UNITS}[task.condition]
    assert task.prompt_line(joint_vocabulary, condition).encode() == PROMPTS[name].encode()


def test_repeats_stand_in_the_line_where_they_are_not_merged(make_joint):
    line = TASKS["tts"].line(make_joint(deduplicate=False), text=TEXT, units=UNITS)
    assert line == "<startoftext> the train leaves<generatespeech>" + "".join(chr(0x4E00 + u) for u in UNITS)


def test_the_models_own_spelling_stays_in_an_extended_vocabulary(extended_vocabulary):
    assert TASKS["textlm"].line(extended_vocabulary, text=TEXT) == "<generatetext> The TRAIN leaves"


@pytest.mark.parametrize("name", TASKS)
def test_golden_masks(vocabulary, name):
    """Everything up to and including <generate…> is masked, the target and the end are not."""
    made = example(TASKS[name], vocabulary, text=TEXT.lower(), units=UNITS)
    head = vocabulary.encode(PROMPTS[name])
    tail = vocabulary.encode(LINES[name].removeprefix(PROMPTS[name]))
    assert tail
    assert made.input_ids == [*head, *tail, vocabulary.end_id]
    assert made.labels == [IGNORED] * len(head) + [*tail, vocabulary.end_id]
    assert IGNORED == -100


def test_golden_ids_of_a_sentence(joint_vocabulary):
    made = example(TASKS["tts"], joint_vocabulary, text="now", units=[3])
    start, generate = joint_vocabulary.control("<startoftext>"), joint_vocabulary.control("<generatespeech>")
    text, unit = joint_vocabulary.encode_text("now"), joint_vocabulary.encode_units([3])
    assert made.input_ids == [start, *text, generate, *unit, joint_vocabulary.end_id]
    assert made.labels == [IGNORED] * (len(text) + 2) + [*unit, joint_vocabulary.end_id]


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(list(TASKS.values())),
    st.lists(st.text("abcdefghi", min_size=1, max_size=5), min_size=1, max_size=6).map(" ".join),
    st.lists(st.integers(0, 11), min_size=1, max_size=30),
)
def test_an_example_is_its_prompt_and_its_target(vocabulary, task, text, units):
    made = example(task, vocabulary, text=text, units=units)
    condition = {None: None, Modality.TEXT: text, Modality.SPEECH: units}[task.condition]
    before = prompt(task, vocabulary, condition)
    target = [i for i in made.labels if i != IGNORED]
    assert made.input_ids == before + target
    assert target[-1] == vocabulary.end_id
    if task.target == Modality.TEXT:
        assert target[:-1] == vocabulary.encode_text(text)
        assert vocabulary.decode_text(target) == text
    else:
        assert vocabulary.decode_units(target) == vocabulary.decode_units(vocabulary.encode_units(units))
    if task.condition is None:
        beginning = text if task.target == Modality.TEXT else units
        assert continuation_prompt(task, vocabulary, beginning) == made.input_ids[:-1]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("textlm", {"units": [1]}, "task textlm: needs text as its target"),
        ("speechlm", {"text": "a"}, "task speechlm: needs speech as its target"),
        ("asr", {"units": [1]}, "task asr: needs text as its target"),
        ("asr", {"text": "a"}, "task asr: needs speech as its condition"),
        ("tts", {"text": "a"}, "task tts: needs speech as its target"),
        ("tts", {"units": [1]}, "task tts: needs text as its condition"),
        ("tts", {"text": "a", "units": [99]}, "unit 99: outside 0 to 11"),
        ("tts", {"text": [1], "units": [1]}, "expected text, got list"),
        ("asr", {"text": "a", "units": "abc"}, "expected units, got text"),
    ],
)
def test_what_is_missing_is_named(joint_vocabulary, name, given, message):
    with pytest.raises(UserError, match=message):
        example(TASKS[name], joint_vocabulary, **given)
