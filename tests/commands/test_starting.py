from __future__ import annotations

import gc

import pytest

from sparq.commands.arguments import starting


def test_no_garbage_is_searched_for_while_a_command_starts():
    assert gc.isenabled()
    with starting():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt), starting():
        raise KeyboardInterrupt
    assert gc.isenabled()


def test_who_has_turned_it_off_keeps_it_off():
    gc.disable()
    try:
        with starting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_command_works_with_it_again(sparq, tiny_run, monkeypatch):
    states = []
    heard = "sparq.language.speech_lm.SpeechLM.segments"
    monkeypatch.setattr(heard, lambda *_, **__: iter(states.append(gc.isenabled()) or ()))
    sparq("transcribe", tiny_run.audio, "--model", tiny_run.folder / "none" / "speechlm")
    assert states == [True]
