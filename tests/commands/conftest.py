"""A command run in an empty folder, and what the tiny run left for it to work on."""

from __future__ import annotations

import io
import sys
import types

import pytest

from sparq import cli
from sparq.language.speech_lm import SpeechLM


@pytest.fixture
def sparq(capfd, monkeypatch, tmp_path):
    """Run a command in an empty folder; gives its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, stdin: bytes = b""):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(stdin)))
        capfd.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def lm(tiny_run):
    return tiny_run.folder / "max" / "speechlm"


@pytest.fixture
def corpus(tiny_run):
    return tiny_run.folder / "corpus"


@pytest.fixture(scope="session")
def quick(tiny_run, tmp_path_factory):
    """The tiny model, held to few pieces by its positions, so that it soon stops speaking."""
    folder = tmp_path_factory.mktemp("quick") / "lm"
    lm = SpeechLM.load(tiny_run.folder / "max" / "speechlm")
    lm.model.config.max_position_embeddings = 48
    lm.save(folder)
    return folder
