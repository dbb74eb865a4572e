from __future__ import annotations

import contextlib

import numpy as np
import pytest

from sparq.cli import _parser
from sparq.config import CorpusConfig, SourceConfig
from sparq.errors import UserError
from sparq.language.listening import LISTENING_IN_VIEWS
from sparq.schema import dump, parse
from sparq.speech.encoder import load_encoder
from sparq.speech.units import UnitExtractor, fit_codebook
from sparq.speech.views import VIEWS, View, other_views

HOP = 384


def tone(seconds=1.0, hertz=440.0):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(16000 * seconds)) / 16000)).astype(np.float32)


@pytest.fixture(scope="module")
def extractor():
    encoder = load_encoder("moonshine-tiny")
    noise = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    return UnitExtractor(encoder, fit_codebook(encoder.encode([tone(2.0), noise]), encoder, k=8))


def test_the_first_view_is_the_sound_itself():
    assert VIEWS[0] == View()
    np.testing.assert_array_equal(VIEWS[0].of(tone(), HOP), tone())
    assert len(set(VIEWS)) == len(VIEWS)


def test_settings_ask_for_no_more_views_than_there_are():
    source = SourceConfig(kind="text", path="a.txt")
    assert parse(CorpusConfig, {"sources": [dump(source)], "views": len(VIEWS)}, "c").views == len(VIEWS)
    with pytest.raises(UserError, match="views"):
        parse(CorpusConfig, {"sources": [dump(source)], "views": len(VIEWS) + 1}, "c")
    for count, known in ((len(VIEWS), True), (len(VIEWS) + 1, False)):
        with contextlib.nullcontext() if known else pytest.raises(SystemExit):
            assert _parser().parse_args(["transcribe", "a.wav", "--views", str(count)]).views == count


def test_fine_tuning_is_scored_with_the_beam_that_transcribes():
    given = _parser().parse_args(["finetune", "recordings", "-o", "mine"])
    assert given.beam == LISTENING_IN_VIEWS.beams


def test_a_view_comes_later_or_is_played_faster():
    late = View(delay=0.5).of(tone(), HOP)
    assert late.dtype == np.float32
    assert not late[: HOP // 2].any()
    np.testing.assert_array_equal(late[HOP // 2 :], tone())
    fast = View(rate=1.25).of(tone(hertz=400.0), HOP)
    assert (fast.dtype, len(fast)) == (np.float32, 12800)
    peak = np.abs(np.fft.rfft(fast)).argmax() * 16000 / len(fast)
    assert peak == pytest.approx(500, abs=2)


def test_other_views_are_the_units_of_what_is_heard(extractor):
    sounds = [tone(1.0), tone(0.6, 300.0)]
    found = other_views(extractor, sounds, 3)
    for sound, views in zip(sounds, found, strict=True):
        assert len(views) == 2
        for view, units in zip(VIEWS[1:3], views, strict=True):
            np.testing.assert_array_equal(units, extractor.extract([view.of(sound, HOP)])[0])
    assert other_views(extractor, sounds, 1) == [(), ()]
    assert other_views(extractor, [], 4) == []


def test_a_view_too_short_for_a_unit_is_none(extractor):
    shortest = extractor.encoder.first_frame
    (views,) = other_views(extractor, [tone(1.0)[:shortest]], 4)
    assert len(views) == 2  # played faster, it is no longer a frame long
    assert other_views(extractor, [np.zeros(1, np.float32)], 4) == [()]


def test_there_are_so_many_ways_alone(extractor):
    for count in (0, len(VIEWS) + 1):
        with pytest.raises(UserError, match=rf"views: {count} \(expected 1 to {len(VIEWS)}\)"):
            other_views(extractor, [tone()], count)
