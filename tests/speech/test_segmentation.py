"""Where recordings are cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.assets import embedded
from sparq.errors import UserError
from sparq.speech.activity import FRAME, Detector, Loudness, Silero
from sparq.speech.audio import RATE, load_audio
from sparq.speech.segmentation import spoken_spans

MARGIN = 0.192


class Told(Detector):
    """Says what it was told: the waveform itself holds the probabilities, one a frame."""

    name = "told"

    def probabilities(self, waveform):
        return waveform[::FRAME]


def speech(seconds, likely=1.0):
    return np.full(round(seconds * RATE / FRAME) * FRAME, likely, np.float32)


def pause(seconds):
    return speech(seconds, 0.0)


def cut(longest, *parts):
    """Start and end in seconds of every stretch."""
    spans = spoken_spans(np.concatenate(parts), Told(), longest)
    return [(span.start / RATE, span.stop / RATE) for span in spans]


@pytest.mark.parametrize("nothing", [np.zeros(1, np.float32), pause(3), speech(3, 0.49)])
def test_where_nobody_speaks_there_are_no_stretches(nothing):
    assert cut(9, nothing) == []


def test_edges_are_trimmed_and_what_is_short_enough_is_not_cut():
    ((start, stop),) = cut(9, pause(2), speech(3), pause(1), speech(1), pause(3))
    assert start == pytest.approx(2 - MARGIN, abs=0.04)
    assert stop == pytest.approx(7 + MARGIN, abs=0.04)
    assert cut(9, speech(3)) == [(0, pytest.approx(3, abs=0.02))]  # no margin where the recording ends


def test_speech_begins_at_one_half_and_goes_on_above_a_third():
    ((start, stop),) = cut(9, pause(1), speech(1, 0.4), speech(1, 0.6), speech(1, 0.4), speech(1, 0.3))
    assert (start, stop) == (pytest.approx(2 - MARGIN, abs=0.04), pytest.approx(4 + MARGIN, abs=0.04))


def test_clicks_are_no_speech():
    assert cut(9, pause(1), speech(0.1), pause(1)) == []
    assert len(cut(9, pause(1), speech(0.2), pause(1))) == 1


def test_a_long_pause_ends_a_stretch_though_both_would_fit():
    assert len(cut(9, speech(1), pause(1.4), speech(1))) == 1
    (_, first), (second, _) = cut(9, speech(1), pause(1.6), speech(1))
    assert (first, second) == (pytest.approx(1 + MARGIN, abs=0.04), pytest.approx(2.6 - MARGIN, abs=0.04))


def test_cuts_fall_into_the_longest_pauses_in_order():
    parts = [speech(4), pause(0.2), speech(3), pause(0.8), speech(5), pause(0.5), speech(2.5)]
    np.testing.assert_allclose(cut(8.3, *parts), [(0, 7.4), (7.8, 16.0)], atol=0.06)
    np.testing.assert_allclose(cut(7, *parts), [(0, 4.1), (4.1, 7.4), (7.8, 13.2), (13.3, 16.0)], atol=0.1)


def test_short_rests_are_put_back_to_their_neighbours():
    """Cut amid its longest pause, a stretch leaves one word, which has room beside what follows it."""
    parts = [speech(1), pause(0.9), speech(3), pause(0.6), speech(5)]
    np.testing.assert_allclose(cut(6, *parts), [(0, 5.1), (5.3, 10.5)], atol=0.06)
    assert len(cut(5, *parts)) == 3  # no room


def test_who_never_pauses_is_cut_where_speech_is_least_likely():
    parts = [speech(7, 0.95), speech(0.2, 0.7), speech(8, 0.95)]
    (_, first), (second, _) = cut(9, *parts)
    assert first == second == pytest.approx(7.1, abs=0.1)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0.2, 12), st.floats(0.04, 3), st.floats(0.5, 1)), min_size=1, max_size=8),
    st.floats(0.6, 15),
)
def test_no_stretch_is_too_long_none_overlap_and_no_speech_is_lost(parts, longest):
    likely = np.concatenate([part for said, silent, p in parts for part in (speech(said, p), pause(silent))])
    spans = spoken_spans(likely, Told(), longest)
    assert all(0 < span.stop - span.start <= longest * RATE for span in spans)
    assert all(one.stop <= two.start for one, two in itertools.pairwise(spans))
    kept = np.zeros(len(likely), bool)
    for span in spans:
        kept[span.start : span.stop] = True
    assert kept[likely >= 0.5].all()


@pytest.mark.parametrize("detector", [Silero, Loudness])
def test_a_real_recording(detector):
    wave = load_audio(embedded("recordings/two_cities.wav"))
    spans = spoken_spans(wave, detector(), 9)
    assert len(wave) / RATE > 40
    assert 5 <= len(spans) <= 12
    assert max(span.stop - span.start for span in spans) <= 9 * RATE
    assert sum(span.stop - span.start for span in spans) > 35 * RATE
    # Nearly every edge is in a pause: far quieter than what is between them.
    loud = [np.sqrt(np.mean(np.square(wave[span.start : span.stop]))) for span in spans]
    edges = [
        wave[at][:] for span in spans for at in (slice(span.start, span.start + 320), slice(span.stop - 320, span.stop))
    ]
    quiet = [np.sqrt(np.mean(np.square(edge))) < 0.3 * loud[i // 2] for i, edge in enumerate(edges)]
    assert np.mean(quiet) > 0.85


def test_stretches_that_are_too_short_are_refused():
    with pytest.raises(UserError, match=r"0\.40 s are too short"):
        spoken_spans(speech(3), Told(), 0.4)
