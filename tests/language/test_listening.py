"""Recordings heard piece by piece, by who says what its units are."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch

from sparq.errors import UserError
from sparq.language.listening import Segment, confidences, listen
from sparq.language.tasks import IGNORED, TASKS, example
from sparq.speech.activity import FRAME, Loudness
from sparq.speech.audio import RATE

HERTZ = 50


class Parrot:
    """Every pitch is a unit, and every unit a word; it keeps what it was asked at once."""

    def __init__(self, model=None, vocabulary=None, seconds=9.0, positions=512):
        self.asked, self.prior = [], None
        self.detector = Loudness()
        self.limits = types.SimpleNamespace(seconds=seconds)
        self.model = model or types.SimpleNamespace(config=types.SimpleNamespace(max_position_embeddings=positions))
        self.vocabulary = vocabulary
        encoder = types.SimpleNamespace(hop=384, rate=RATE)
        self.extractor = types.SimpleNamespace(encoder=encoder, extract=self.extract)

    def extract(self, waves):
        pitches = [np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave) / HERTZ for wave in waves]
        return [np.array([round(pitch)] * (len(wave) // 384)) for wave, pitch in zip(waves, pitches, strict=True)]

    def write_down(self, units, options, *, views, batch):
        assert all(len(others) == 3 for others in views)
        self.asked.append((len(units), options, batch))
        return ["" if one[0] == 13 else f"word{one[0]}" for one in units]


@pytest.fixture(autouse=True)
def sure(monkeypatch):
    monkeypatch.setattr("sparq.language.listening.confidences", lambda _, __, units, texts: [0.5] * len(texts))


def recording(*pitches):
    """Words of one second and pauses of two, the first after one second."""
    parts = [np.zeros(RATE, np.float32)]
    for each in pitches:
        word = np.sin(2 * np.pi * HERTZ * each * np.arange(RATE) / RATE) / 5
        parts += [word.astype(np.float32), np.zeros(2 * RATE, np.float32)]
    return np.concatenate(parts)


def test_segments_come_in_order_with_their_times():
    heard = list(listen(Parrot(), [recording(20, 30), recording(), recording(40)]))
    assert [(index, one and one.text) for index, one in heard] == [
        (0, "word20"), (0, "word30"), (0, None), (1, None), (2, "word40"), (2, None),
    ]  # fmt: skip
    one, two = heard[0][1], heard[1][1]
    assert isinstance(one, Segment)
    for segment, start in ((one, 1), (two, 4)):
        assert segment.start == pytest.approx(start - 0.2, abs=FRAME / RATE + 0.01)
        assert segment.end == pytest.approx(start + 1.2, abs=FRAME / RATE + 0.01)
        assert segment.confidence == 0.5


def test_what_is_not_understood_is_left_out():
    assert [one.text for _, one in listen(Parrot(), [recording(13, 20, 13)]) if one] == ["word20"]


def test_batches_grow_and_span_recordings():
    lm = Parrot()
    said = list(range(20, 60))
    heard = [one.text for _, one in listen(lm, [recording(*said[:25]), recording(*said[25:])], "how", batch=3) if one]
    assert heard == [f"word{one}" for one in said]
    # One piece, two, four ... and at most four batches at once; each recording's end takes a place.
    assert [count for count, _, _ in lm.asked] == [1, 2, 4, 8, 11, 12, 2]
    assert {(options, batch) for _, options, batch in lm.asked} == {("how", 3)}


def test_recordings_are_opened_when_their_turn_comes():
    opened = []

    def recordings():
        for index in range(4):
            opened.append(index)
            yield recording(20)

    heard = listen(Parrot(), recordings())
    assert not opened
    next(heard)
    assert opened == [0]


@pytest.mark.parametrize(("seconds", "positions", "longest"), [(4.0, 512, 4.0), (9.0, 400, 4.8)])
def test_no_more_is_heard_at_once_than_the_model_can_hear(seconds, positions, longest):
    wave = np.tile(recording(20)[RATE:][: 2 * RATE], 10)  # a second of sound, a second of silence
    heard = [one for _, one in listen(Parrot(seconds=seconds, positions=positions), [wave]) if one]
    assert max(one.end - one.start for one in heard) <= longest
    assert max(one.end - one.start for one in heard) > longest / 2


def test_confidence_is_the_mean_probability_of_the_pieces(make_tiny, vocabulary):
    model = make_tiny("llama", vocabulary)
    units, texts = [np.array([1, 1, 2, 3]), np.array([0, 4]), np.array([5])], ["one two", "", "the sea"]
    expected = []
    for one, text in zip(units, texts, strict=True):
        made = example(TASKS["asr"], vocabulary, text=text, units=one)
        with torch.no_grad():
            likely = model(torch.tensor([made.input_ids])).logits[0].softmax(-1)
        found = [float(likely[i - 1, label]) for i, label in enumerate(made.labels) if label != IGNORED]
        expected.append(float(np.prod(found) ** (1 / len(found))) if text else 0.0)
    assert confidences(model, vocabulary, units, texts) == pytest.approx(expected, rel=1e-6)
    few = make_tiny("opt", vocabulary, positions=12)
    assert confidences(few, vocabulary, [np.arange(40) % 6], ["one"]) == [0.0]


def test_what_was_heard_before_a_stop_is_not_heard_again():
    waves = [recording(20, 30, 40), recording(50)]
    whole = list(listen(Parrot(), waves))
    lm = Parrot()
    rest = list(listen(lm, waves, heard=lambda index: (whole[1][1].end, 0.0)[index]))
    assert rest == whole[2:]
    assert sum(count for count, _, _ in lm.asked) == 2


@pytest.mark.parametrize("batch", [0, -1])
def test_nothing_at_once_is_refused(batch):
    with pytest.raises(UserError, match=f"batch: {batch}"):
        next(listen(Parrot(), [recording(20)], batch=batch))
