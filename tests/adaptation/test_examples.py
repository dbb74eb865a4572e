from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import said
from torch.utils.data import DataLoader

from sparq.adaptation.examples import ROUND, ExampleStream, collate
from sparq.adaptation.start import new_model
from sparq.config import CurriculumConfig, ModelConfig
from sparq.corpus.utterance import Utterance
from sparq.errors import UserError
from sparq.language.tasks import IGNORED, TASKS, Example, example

EQUAL = dict.fromkeys(TASKS, 1.0)


def take(stream, count):
    return list(itertools.islice(stream, count))


def same(left, right):
    return all(torch.equal(a[key], b[key]) for a, b in zip(left, right, strict=True) for key in ("input_ids", "labels"))


def rows(batches, vocabulary):
    """Sequences without their padding."""
    return [row[row != vocabulary.pad_id].tolist() for batch in batches for row in batch["input_ids"]]


def task_of(ids, vocabulary):
    first = {vocabulary.control("<startoftext>"): "tts", vocabulary.control("<startofspeech>"): "asr"}
    first |= {vocabulary.control("<generatetext>"): "textlm", vocabulary.control("<generatespeech>"): "speechlm"}
    return first[ids[0]]


def words_of(ids, vocabulary):
    return len(vocabulary.decode_text(ids).split())


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(vocabulary, make_sentences):
    utterances = make_sentences(50)
    make = lambda seed: take(ExampleStream(utterances, vocabulary, EQUAL, 300, seed), ROUND + 3)  # noqa: E731 - short
    assert same(make(1), make(1))
    assert not torch.equal(make(1)[0]["input_ids"], make(2)[0]["input_ids"])


@pytest.mark.parametrize("start", [1, ROUND - 1, ROUND, 2 * ROUND + 5])
def test_a_stream_that_starts_later_gives_what_follows(vocabulary, make_sentences, start):
    curriculum = CurriculumConfig(words=2, longest=6, batches=ROUND + 1)
    stream = ExampleStream(make_sentences(50), vocabulary, EQUAL, 200, curriculum=curriculum)
    later = stream.starting_at(start)
    assert same(take(stream, start + 4)[start:], take(later, 4))
    assert same(take(stream, 1), take(stream.starting_at(0), 1))


def test_a_process_of_its_own_loads_the_same_batches(vocabulary, make_sentences):
    stream = ExampleStream(make_sentences(20), vocabulary, EQUAL, 200).starting_at(ROUND - 1)
    loader = DataLoader(stream, batch_size=None, num_workers=1)
    assert same(take(loader, 3), take(stream, 3))


@settings(deadline=None, max_examples=10)
@given(bins=st.integers(120, 2000), seed=st.integers(0, 9))
def test_no_batch_holds_more_than_its_bins(vocabulary, make_sentences, bins, seed):
    for batch in take(ExampleStream(make_sentences(60), vocabulary, EQUAL, bins, seed), ROUND):
        assert batch["input_ids"].numel() <= bins
        assert batch["input_ids"].shape == batch["labels"].shape


@pytest.mark.parametrize("bins", [600, 5000])
def test_little_is_padding(vocabulary, make_sentences, bins):
    # As long as read sentences are: 3 to 24 words, text and speech mixed, lengths from 5 to 230 pieces.
    stream = ExampleStream(make_sentences(400, shortest=3, longest=24), vocabulary, EQUAL, bins)
    batches = take(stream, ROUND)
    padded = sum(batch["input_ids"].numel() for batch in batches)
    real = sum(map(len, rows(batches, vocabulary)))
    assert 1 - real / padded <= 0.05
    assert padded >= 0.85 * ROUND * bins


def test_tasks_come_as_often_as_their_weights_say(vocabulary, make_sentences):
    weights = {"textlm": 1, "speechlm": 2, "asr": 4, "tts": 3}
    batches = take(ExampleStream(make_sentences(50), vocabulary, weights, 1500), ROUND)
    counts = Counter(task_of(ids, vocabulary) for ids in rows(batches, vocabulary))
    total = sum(counts.values())
    expected = {name: total * weight / 10 for name, weight in weights.items()}
    # 16.27 is what chi square with 3 degrees of freedom exceeds once in a thousand seeds.
    assert sum((counts[name] - expected[name]) ** 2 / expected[name] for name in weights) < 16.27
    only = take(ExampleStream(make_sentences(9), vocabulary, {"asr": 1, "tts": 0}, 300), 3)
    assert {task_of(ids, vocabulary) for ids in rows(only, vocabulary)} == {"asr"}


def test_weights_hold_where_long_examples_of_one_task_are_left_out(vocabulary, make_sentences):
    stream = ExampleStream(make_sentences(80), vocabulary, {"asr": 1, "textlm": 1}, 600, maximum_length=60)
    batches = take(stream, ROUND)
    counts = Counter(task_of(ids, vocabulary) for ids in rows(batches, vocabulary))
    assert counts["asr"] / counts.total() == pytest.approx(0.5, abs=0.03)
    assert max(map(len, rows(batches, vocabulary))) <= 60


@pytest.mark.parametrize("timed", [True, False])
def test_the_curriculum_grows_from_short_to_all(vocabulary, make_sentences, timed):
    utterances = make_sentences(200, shortest=1, timed=timed)
    curriculum = CurriculumConfig(words=2, longest=6, batches=3 * ROUND)
    stream = ExampleStream(utterances, vocabulary, {"asr": 1, "textlm": 1}, 150, curriculum=curriculum)
    longest = {"asr": [], "textlm": []}
    for index in range(4):
        drawn = rows(take(stream.starting_at(index * ROUND), ROUND), vocabulary)
        for task, found in longest.items():
            found.append(max(words_of(ids, vocabulary) for ids in drawn if task_of(ids, vocabulary) == task))
    assert longest["asr"] == [2, 3, 4, 12]
    assert longest["textlm"] == [12, 12, 12, 12]  # with text alone there is nothing to align


def test_spans_hold_the_units_of_their_words(vocabulary, make_sentences):
    utterances = make_sentences(40)
    curriculum = CurriculumConfig(batches=0, spans=1.0)
    batches = take(ExampleStream(utterances, vocabulary, {"asr": 1}, 300, curriculum=curriculum), 20)
    written = rows(batches, vocabulary)
    assert {words_of(ids, vocabulary) for ids in written} >= set(range(1, 10))
    sources = " | ".join(u.text for u in utterances)
    for ids in written:
        text = vocabulary.decode_text(ids)
        assert text in sources
        # Two frames a letter and a pause of unit 0 between words; repeats are merged.
        spelled = [0 if c == " " else ord(c) - ord("a") + 1 for c in text]
        merged = [unit for unit, _ in itertools.groupby(spelled)]
        assert vocabulary.decode_units(ids) == merged


def test_a_share_of_the_examples_are_spans(vocabulary, make_sentences):
    utterances = make_sentences(60, shortest=9, longest=9)
    stream = ExampleStream(
        utterances, vocabulary, {"textlm": 1}, 400, curriculum=CurriculumConfig(batches=0, spans=0.5)
    )
    counts = Counter(words_of(ids, vocabulary) == 9 for ids in rows(take(stream, ROUND), vocabulary))
    # Half are whole sentences, and so is a ninth of the spans.
    assert counts[True] / counts.total() == pytest.approx(0.5 + 0.5 / 9, abs=0.03)


def test_only_targets_have_labels(vocabulary, make_sentences):
    for batch in take(ExampleStream(make_sentences(30), vocabulary, EQUAL, 400), 10):
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            real = ids[ids != vocabulary.pad_id].tolist()
            name = task_of(real, vocabulary)
            start = real.index(vocabulary.control(TASKS[name].generate)) + 1
            assert labels.tolist() == [IGNORED] * start + real[start:] + [IGNORED] * (len(ids) - len(real))
            assert real[-1] == vocabulary.end_id


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_padding_on_the_right_needs_no_mask(vocabulary, make_sentences, architecture):
    shape = ModelConfig(
        architecture=architecture, hidden_size=16, layers=2, heads=2, intermediate_size=24, max_positions=256
    )
    model = new_model(shape, vocabulary).double().eval()
    made = [example(TASKS["tts"], vocabulary, text=u.text, units=u.units) for u in make_sentences(5)]
    batch = collate(made, vocabulary.pad_id)
    with torch.no_grad():
        together = model(batch["input_ids"]).logits
        for row, one in enumerate(made):
            alone = model(torch.tensor([one.input_ids])).logits[0]
            torch.testing.assert_close(together[row, : len(one.input_ids)], alone, rtol=1e-9, atol=1e-9)


def test_collate_golden():
    batch = collate([Example([5, 6], [IGNORED, 6]), Example([5, 7, 8], [IGNORED, 7, 8])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 0], [5, 7, 8]]
    assert batch["labels"].tolist() == [[IGNORED, 6, IGNORED], [IGNORED, 7, 8]]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_an_epoch_is_as_many_examples_as_utterances(vocabulary, make_sentences):
    utterances = make_sentences(300)
    stream = ExampleStream(utterances, vocabulary, EQUAL, 2000, curriculum=CurriculumConfig(batches=10**6))
    lengths = [
        len(example(task, vocabulary, text=u.text, units=u.units).input_ids)
        for u in utterances
        for task in TASKS.values()
    ]
    # A batch is nearly full, so its examples are about its bins over their mean length.
    assert stream.batches_per_epoch == pytest.approx(300 * np.mean(lengths) / 2000, rel=0.15)


def test_what_cannot_be_an_example_is_passed_over(vocabulary, make_sentences):
    silent = Utterance("two three", np.array([1, 2, 3]), np.array([0, 3]), np.array([3, 3]))
    unwritten = Utterance("— …", np.array([1, 2, 3]))
    stream = ExampleStream(
        [silent, unwritten], vocabulary, {"asr": 1, "textlm": 1}, 100, curriculum=CurriculumConfig(batches=0, spans=0.7)
    )
    written = rows(take(stream, ROUND), vocabulary)
    texts = {vocabulary.decode_text(ids) for ids in written}
    heard = {vocabulary.decode_text(ids) for ids in written if task_of(ids, vocabulary) == "asr"}
    assert texts == {"two three", "two", "three"}
    assert heard == {"two three", "two"}


def test_text_alone_is_for_text_alone(vocabulary, make_sentences):
    spoken = make_sentences(10)
    stream = ExampleStream([*spoken, Utterance("twelve", np.zeros(0, np.int64))], vocabulary, EQUAL, 300)
    tasks = {
        task_of(i, vocabulary) for i in rows(take(stream, ROUND), vocabulary) if vocabulary.decode_text(i) == "twelve"
    }
    assert tasks == {"textlm"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"utterances": []}, "textlm has nothing to learn from"),
        ({"utterances": [Utterance("one", np.zeros(0, np.int64))]}, "speechlm has nothing to learn from"),
        ({"task_weights": {"asr": 1, "translation": 1}}, "task_weights: 'translation' is not a task"),
        ({"task_weights": {"asr": 0}}, "expected weights of 0 or more, not all 0"),
        ({"task_weights": {"asr": 2, "tts": -1}}, "expected weights of 0 or more"),
        ({"batch_bins": 3}, "batch_bins: 3"),
        ({"maximum_length": 3}, "no example of"),
        ({"curriculum": CurriculumConfig(words=2, batches=100)}, "curriculum.words: 2"),
    ],
)
def test_errors_name_the_key(vocabulary, make_sentences, change, message):
    settings = {"utterances": make_sentences(5, timed=False), "task_weights": EQUAL, "batch_bins": 300} | change
    with pytest.raises(UserError, match=message) as error:
        next(iter(ExampleStream(vocabulary=vocabulary, **settings)))
    assert "\n" not in str(error.value)


NOTHING = np.zeros(0, np.int64)


def test_speech_alone_and_text_alone_serve_one_task_each(vocabulary, make_sentences):
    pairs, speech, text = make_sentences(10), Utterance("", np.arange(3)), Utterance("twelve", NOTHING)
    batches = take(ExampleStream([*pairs, speech, text], vocabulary, EQUAL, 300), ROUND)
    made = {task: example(TASKS[task], vocabulary, text=one.text, units=one.units).input_ids
            for task, one in (("speechlm", speech), ("textlm", text))}  # fmt: skip
    drawn = Counter(task_of(ids, vocabulary) for ids in rows(batches, vocabulary) if ids in made.values())
    assert set(drawn) == {"speechlm", "textlm"}
    assert ExampleStream([speech], vocabulary, {"speechlm": 1}, 300).batches_per_epoch == 1
    with pytest.raises(UserError, match="asr has nothing to learn from"):
        ExampleStream([speech, text], vocabulary, EQUAL, 300)


def test_a_source_serves_the_tasks_that_it_is_meant_for(vocabulary, make_sentences):
    one, other = make_sentences(2, shortest=5, longest=5)
    both = [dataclasses.replace(one, tasks=("asr",)), dataclasses.replace(other, tasks=("tts", "textlm"))]
    weights = {"asr": 1.0, "tts": 1.0, "textlm": 1.0}
    found = Counter(map(tuple, rows(take(ExampleStream(both, vocabulary, weights, 600), 8), vocabulary)))
    expected = {
        tuple(example(TASKS[task], vocabulary, text=u.text, units=u.units).input_ids)
        for task, u in (("asr", one), ("tts", other), ("textlm", other))
    }
    assert set(found) == expected
    with pytest.raises(UserError, match="speechlm has nothing to learn from"):
        ExampleStream(both, vocabulary, EQUAL, 600)


def test_a_curriculum_leaves_speech_alone_for_later(vocabulary, make_sentences):
    """How many words are in it is not known, and it is longer than a few."""
    speech = [Utterance("", np.arange(4)), *make_sentences(20, shortest=1, longest=6)]
    curriculum = CurriculumConfig(words=3, longest=3, batches=ROUND)
    stream = ExampleStream(speech, vocabulary, {"speechlm": 1.0}, 300, curriculum=curriculum)
    alone = example(TASKS["speechlm"], vocabulary, units=speech[0].units).input_ids
    batches = take(stream, 2 * ROUND)
    assert alone not in rows(batches[:ROUND], vocabulary)
    assert alone in rows(batches[ROUND:], vocabulary)


def test_disturbed_speech_is_listened_to_and_never_spoken(vocabulary):
    clean, rough = said(["one", "seven"] * 2), dataclasses.replace(said(["zero", "six"] * 2), disturbed=True)
    telling = set(vocabulary.encode_units(rough.units)) - set(vocabulary.encode_units(clean.units))
    assert telling
    curriculum = CurriculumConfig(batches=0, spans=0.5)
    stream = ExampleStream([clean, rough], vocabulary, EQUAL, 400, curriculum=curriculum)
    met = Counter(task_of(ids, vocabulary) for ids in rows(take(stream, 40), vocabulary) if telling & set(ids))
    assert set(met) == {"asr"}
    assert met["asr"] > 20
    with pytest.raises(UserError, match="has nothing to learn from"):
        ExampleStream([rough], vocabulary, EQUAL, 300)
