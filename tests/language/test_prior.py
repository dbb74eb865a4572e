from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import sparq
from sparq.assets import installed, shipped
from sparq.cli import main
from sparq.errors import UserError
from sparq.language import listening
from sparq.language.listening import write_down
from sparq.language.prior import TextPrior, as_sentence, find_prior
from sparq.language.rescoring import WITH_PRIOR, Rescoring, best_texts
from sparq.language.speech_lm import SpeechLM
from sparq.language.tasks import TASKS, example

SMOL = "smollm2-135m"
TEXTS = ["one", "two", "three", "one two", "two three", "three one", "two one two", "three three one two"]
UNITS = [np.array([1, 1, 2, 3, 3]), np.array([0, 4, 4, 2]), np.array([5, 3])]


class Taste:
    """Finds a text the likelier, the more of one letter it has; remembers what it was asked."""

    def __init__(self, letter):
        self.letter = letter
        self.asked = []

    def log_likelihoods(self, texts):
        self.asked += texts
        return [100.0 * text.count(self.letter) for text in texts]


@pytest.fixture
def folder(make_tiny, extended_vocabulary, tmp_path):
    """A text language model as users have them."""
    make_tiny("gpt2", extended_vocabulary, dtype=torch.float32).save_pretrained(tmp_path / "lm")
    (tmp_path / "vocabulary").mkdir()
    extended_vocabulary.save(tmp_path / "vocabulary")
    AutoTokenizer.from_pretrained(tmp_path / "vocabulary" / "text").save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("i think i'm in it", "I think I'm in it."),
        ("who goes there?", "Who goes there?"),
        ("Already. Written", "Already. Written"),
        ("", ""),
        ("été", "Été."),
    ],
)
def test_a_transcript_is_written_as_a_sentence(text, written):
    assert as_sentence(text) == written


def test_a_transcript_is_a_sentence_and_a_short_one_maybe_a_part(folder):
    prior = TextPrior.load(str(folder))

    def alone(text):
        ids = prior.tokenizer(text).input_ids
        with torch.no_grad():
            log_p = prior.model(torch.tensor([[prior.tokenizer.eos_token_id, *ids]])).logits[0].log_softmax(-1)
        return sum(float(log_p[place, one]) for place, one in enumerate(ids))

    expected = [np.log((np.exp(alone(text)) + np.exp(alone(as_sentence(text)))) / 2) for text in TEXTS]
    assert prior.log_likelihoods(TEXTS) == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == len(expected)
    long = "one two three one two three one"
    told = [alone("One two."), alone(as_sentence(long))]
    assert prior.log_likelihoods(["One two.", long]) == pytest.approx(told, rel=1e-5)


def test_a_text_longer_than_its_positions_is_judged_by_what_fits(folder):
    long = TextPrior.load(str(folder)).log_likelihoods(["the train " * 100, "the train " * 90])
    assert long[0] == long[1]


def test_it_takes_the_place_of_the_models_own_opinion(make_tiny, vocabulary, by_definition):
    model = make_tiny("llama", vocabulary)

    def likelihood(task, text, units):
        return by_definition(model, example(TASKS[task], vocabulary, text=text, units=units))

    rescoring = Rescoring(channel=0.3, prior=0.2)
    differ = 0
    for letter in "twr":
        taste = Taste(letter)
        expected = []
        for units in UNITS:
            first = {one: likelihood("asr", one, units) + 0.2 * 100 * one.count(letter) for one in TEXTS}
            five = sorted(first, key=first.__getitem__)[-5:]
            expected.append(max(five, key=lambda one: first[one] + 0.3 * likelihood("tts", one, units)))
        found = best_texts(model, vocabulary, UNITS, [TEXTS] * 3, rescoring, prior=taste)
        assert found == expected
        assert len(taste.asked) == 3 * len(TEXTS)
        differ += found != best_texts(model, vocabulary, UNITS, [TEXTS] * 3, rescoring)
    assert differ


def test_it_judges_all_that_a_wider_beam_finds(monkeypatch):
    lm = sparq.load()
    units, views = [np.arange(30) % 20], [[np.arange(30) * 3 % 20, np.arange(40) % 9]]
    lm.prior = Taste("e")
    told = []
    monkeypatch.setattr(
        "sparq.language.listening.best_texts", lambda _, __, ___, texts, *more: told.append((texts, more)) or [""]
    )
    write_down(lm, units, views=views)
    monkeypatch.setattr("sparq.language.listening._MARGIN", 100.0)
    write_down(lm, units, rescoring=Rescoring(0, 1), views=views)
    ((near,), (weights, _, prior, _)), ((texts,), (others, *_)) = told
    assert len(texts) == 24
    assert near == texts[: len(near)] != texts  # of so little speech, the second best is far behind
    assert weights == WITH_PRIOR
    assert prior is lm.prior
    assert others == Rescoring(0, 1)


def test_the_one_that_a_model_was_saved_with_is_taken_where_it_is_installed(
    folder, tiny_run, tmp_path, monkeypatch, capsys
):
    other, model, loaded, load = tiny_run.folder / "none" / "speechlm", tmp_path / "model", [], TextPrior.load
    monkeypatch.setattr(TextPrior, "load", lambda name, *more: loaded.append(name) or load({SMOL: folder}[name], *more))
    lm = SpeechLM.load(other)
    assert lm.prior_name is None
    lm.prior_name = SMOL
    lm.save(model)
    assert SpeechLM.load(model).prior_name == SMOL
    assert sparq.load(model).prior is None  # it is not installed
    monkeypatch.setattr("sparq.language.prior.installed", lambda name: name == SMOL)
    for without in (sparq.load(model, prior="none"), sparq.load(other), SpeechLM.load(model)):
        assert without.prior is None
    lm = sparq.load(model)
    assert not loaded
    lm.transcribe(str(tiny_run.audio))
    lm.transcribe(str(tiny_run.audio))
    assert loaded == [SMOL]
    for more, times in (([], 2), (["--prior", "none"], 2), (["--prior", "auto"], 3)):
        assert main(["transcribe", str(tiny_run.audio), "--model", str(model), *more]) == 0
        assert len(loaded) == times
    capsys.readouterr()


def test_it_is_loaded_beside_what_comes_before_it_is_asked(folder, tiny_run, monkeypatch):
    lm = SpeechLM.load(tiny_run.folder / "none" / "speechlm")
    monkeypatch.setattr("sparq.language.prior.installed", lambda _: True)
    lm.prior = find_prior("auto", str(folder))
    load, search, loaded, searched = TextPrior.load, listening.search_together, threading.Event(), []
    monkeypatch.setattr(TextPrior, "load", lambda *given: (load(*given), loaded.set())[0])
    monkeypatch.setattr(
        listening, "search_together", lambda *a, **k: (searched.append(loaded.wait(60)), search(*a, **k))[1]
    )
    lm.transcribe(str(tiny_run.audio))
    assert searched
    assert all(searched)
    (folder / "config.json").write_text("{")
    lm.prior = find_prior("auto", str(folder))
    with pytest.raises(UserError, match=r"^prior: "):
        lm.transcribe(str(tiny_run.audio))


@pytest.mark.parametrize("sink", ["none", "max", "zero"])
def test_all_that_ship_know_one(sink):
    assert SpeechLM.load(shipped(f"speechlm-{sink}")).prior_name == SMOL


def test_one_asked_for_by_name_is_looked_for_at_once(tiny_run, tmp_path):
    with pytest.raises(UserError, match=r"^prior: .*nothing"):
        sparq.load(tiny_run.folder / "none" / "speechlm", prior=str(tmp_path / "nothing"))


@pytest.mark.skipif(not installed(SMOL), reason="its package is not installed")
def test_smollm2_knows_which_words_go_together():
    prior = TextPrior.load(SMOL)
    said = ["it was the worst of times", "i'll be there in an hour"]
    misheard = ["it was the wurst off times", "aisle bee their in an our"]
    assert all(a > b + 5 for a, b in zip(*map(prior.log_likelihoods, (said, misheard)), strict=True))


def test_one_without_a_weight_is_not_asked(make_tiny, vocabulary):
    taste = Taste("e")
    best_texts(make_tiny("llama", vocabulary), vocabulary, UNITS, [TEXTS] * 3, Rescoring(0.2, 0), prior=taste)
    assert not taste.asked


def test_the_command_asks_it(folder, tmp_path, tiny_run, capsys, monkeypatch):
    model = str(tiny_run.folder / "none" / "speechlm")
    asked = []
    monkeypatch.setattr("sparq.language.listening._MARGIN", 1000.0)
    weigh = TextPrior.log_likelihoods
    monkeypatch.setattr(TextPrior, "log_likelihoods", lambda self, texts: asked.extend(texts) or weigh(self, texts))
    assert main(["transcribe", str(tiny_run.audio), "--model", model, "--prior", str(folder)]) == 0
    assert len(asked) > 1
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    assert main(["transcribe", str(tiny_run.audio), "--model", model, "--prior", str(tmp_path / "empty")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "prior" in line
    assert "empty" in line


def test_a_tokenizer_with_nothing_to_begin_behind(folder):
    prior = TextPrior.load(str(folder))
    prior.tokenizer.eos_token = None
    prior.tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"^prior: .*neither a first nor a last token"):
        TextPrior.load(str(folder))


def test_a_damaged_tokenizer_is_told(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"^prior: .*lm: its tokenizer cannot be loaded"):
        TextPrior.load(str(folder))


def test_a_model_that_is_nowhere_is_told_in_one_sentence(monkeypatch, tmp_path):
    told = []

    def unreachable(*_, **__):
        told.append(logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING))
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.\nCheck your connection.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sparq.language.folder.load_pretrained", unreachable)
    with pytest.raises(UserError) as caught:
        TextPrior.load("nosuch")
    assert str(caught.value) == (
        "prior: nosuch: there is no such folder, nor can it be had from the Hugging Face hub (We couldn't connect to "
        "'https://huggingface.co' to load the files)"
    )
    with pytest.raises(UserError, match=r"^prior: ./no/such: there is no such folder$"):
        TextPrior.load("./no/such")
    assert told == [False, False]
    assert logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
