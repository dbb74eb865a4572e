from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sparq.adaptation.examples import ExampleStream, collate
from sparq.adaptation.loss import counted_loss
from sparq.adaptation.start import pretrained_model
from sparq.adaptation.teacher import TextTeacher
from sparq.adaptation.training import adapt
from sparq.attention import install
from sparq.config import AdaptationConfig, LoraConfig
from sparq.errors import UserError
from sparq.language.tasks import IGNORED, TASKS, example

ROWS = 320  # of the pretrained embeddings, more than the tokenizer has ids, as OPT's


@pytest.fixture
def text_model(tmp_path):
    torch.manual_seed(3)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, vocab_size=ROWS, initializer_range=0.3))
    model.save_pretrained(tmp_path / "text")
    return model.eval()


@pytest.fixture
def batch(extended, make_sentences):
    said = make_sentences(8, shortest=2, longest=5)
    names = ["textlm", "asr", "tts", "textlm", "speechlm", "asr", "textlm", "tts"]
    made = [example(TASKS[name], extended, text=u.text, units=u.units) for name, u in zip(names, said, strict=True)]
    return names, made, collate(made, extended.pad_id)


def test_it_is_asked_for_the_words_of_text_alone_but_the_first(text_model, extended, batch):
    names, made, tensors = batch
    asked = TextTeacher(text_model, extended).positions(tensors["labels"])
    assert asked.shape == (8, tensors["labels"].shape[1] - 1)
    for name, one, row in zip(names, made, asked, strict=True):
        # Control token, first word, …, last word, end: all but the first word and the end are asked for.
        words = len(one.input_ids) - 2 if name == "textlm" else 1
        assert row.nonzero().flatten().tolist() == list(range(1, words))


def test_it_says_what_the_text_model_says_of_the_text_alone(text_model, extended, batch):
    names, made, tensors = batch
    told = TextTeacher(text_model, extended).probabilities(tensors["labels"])
    expected = []
    for name, one in zip(names, made, strict=True):
        if name == "textlm":
            text = torch.tensor([one.input_ids[1:-1]])
            with torch.no_grad():
                expected.append(text_model(text).logits[0, :-1, : extended.text_size].softmax(-1))
    torch.testing.assert_close(told, torch.cat(expected))
    torch.testing.assert_close(told.sum(-1), torch.ones(len(told)))


def test_the_loss_is_the_cross_entropy_of_what_it_says(text_model, extended, batch):
    _, _, tensors = batch
    labels = tensors["labels"]
    counted = labels[:, 1:] != IGNORED
    logits = torch.randn(int(counted.sum()), extended.size, requires_grad=True)
    teacher = TextTeacher(text_model, extended)
    loss = counted_loss({"logits": logits}, labels, teacher=teacher)
    told, asked = iter(teacher.probabilities(labels)), teacher.positions(labels)[counted]
    total = torch.zeros(())
    for row, target, soft in zip(logits.log_softmax(-1), labels[:, 1:][counted], asked, strict=True):
        likely = torch.zeros(extended.size)
        if soft:
            likely[: extended.text_size] = next(told)
        else:
            likely[target] = 1
        total = total - likely @ row
    torch.testing.assert_close(loss, total / len(logits))
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits)[0].sum(-1), torch.zeros(len(logits)), atol=1e-6, rtol=0
    )


def test_examples_without_text_alone_are_as_ever(text_model, extended, batch):
    names, made, _ = batch
    others = collate([one for name, one in zip(names, made, strict=True) if name != "textlm"], extended.pad_id)
    logits = torch.randn(int((others["labels"][:, 1:] != IGNORED).sum()), extended.size)
    plain = counted_loss({"logits": logits}, others["labels"], smoothing=0.1)
    taught = counted_loss(
        {"logits": logits}, others["labels"], smoothing=0.1, teacher=TextTeacher(text_model, extended)
    )
    assert taught == plain


def distance(model, teacher, examples, extended):
    """Mean divergence from the teacher (nats) over the words of text."""
    labels = collate(examples, extended.pad_id)
    asked = teacher.positions(labels["labels"])
    with torch.no_grad():
        said = model(labels["input_ids"]).logits[:, :-1][asked].log_softmax(-1)[:, : extended.text_size]
    told = teacher.probabilities(labels["labels"])
    return float((told * (told.log() - said)).sum(-1).mean())


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("sink", ["none", "max"])
def test_a_model_stays_nearer_to_what_it_was(text_model, extended, make_sentences, tmp_path, method, sink):
    said = make_sentences(30, shortest=2, longest=4)
    stream = ExampleStream(said, extended, {"textlm": 1.0, "asr": 1.0}, 400, maximum_length=64)
    config = AdaptationConfig(
        method=method,
        lora=LoraConfig(rank=4, alpha=4),
        steps=40,
        learning_rate=1e-2,
        schedule="constant",
        save_every=99,
    )
    held_out = [example(TASKS["textlm"], extended, text=u.text) for u in make_sentences(20, shortest=3, longest=6)]
    teacher, apart = TextTeacher(text_model, extended), {}
    for targets in ("words", "model"):
        model = install(pretrained_model(tmp_path / "text", extended, utterances=said), sink)
        told = dataclasses.replace(config, text_targets=targets)
        before = text_model if targets == "model" else None
        trained = adapt(model, stream, told, tmp_path / targets, before=before)
        apart[targets] = distance(trained.model, teacher, held_out, extended)
    assert apart["model"] < 0.8 * apart["words"]


def test_without_a_text_model_there_is_no_teacher(
    text_model, vocabulary, extended, make_sentences, tmp_path, tiny_shape
):
    said = make_sentences(5)
    config = AdaptationConfig(steps=1, text_targets="model")
    for written, before in ((extended, None), (vocabulary, text_model)):
        stream = ExampleStream(said, written, {"asr": 1.0}, 1000)
        with pytest.raises(UserError, match="text_targets: model"):
            adapt(text_model, stream, config, tmp_path / "log", before=before)
    assert not (tmp_path / "log").exists()
