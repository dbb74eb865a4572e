from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from sparq.errors import UserError
from sparq.evaluation.perplexity import batch_likelihood, perplexity
from sparq.language.likelihood import padded_batches
from sparq.language.tasks import Example


def example(seed, length, condition, vocabulary=30):
    ids = torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(ids, [-100] * condition + ids[condition:])


def model_of(kind):
    torch.manual_seed(0)
    if kind == "opt":
        config = OPTConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            ffn_dim=32,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            dropout=0.5,
        )
        model = OPTForCausalLM(config)
    elif kind == "llama":
        config = LlamaConfig(
            vocab_size=30,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            pad_token_id=0,
        )
        model = LlamaForCausalLM(config)
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model.double().train()


@pytest.fixture(params=["opt", "llama", "gpt2"])
def model(request):
    return model_of(request.param)


EXAMPLES = [
    example(seed, length, condition) for seed, (length, condition) in enumerate([(9, 1), (20, 8), (4, 3), (7, 0)])
]


def by_hand(model, examples):
    """One sequence at a time, one token at a time, with the probabilities written out."""
    model.eval()
    logs, right = [], []
    with torch.no_grad():
        for ids, labels in ((one.input_ids, one.labels) for one in examples):
            probabilities = model(torch.tensor([ids])).logits[0].softmax(-1)
            for t in range(1, len(ids)):
                if labels[t] != -100:
                    logs.append(math.log(probabilities[t - 1, labels[t]]))
                    right.append(int(probabilities[t - 1].argmax()) == labels[t])
    return math.exp(-sum(logs) / len(logs)), 100 * sum(right) / len(right), len(logs)


@pytest.mark.parametrize("padded_tokens", [1, 16, 40, 10_000])
def test_is_the_definition_however_it_is_batched(model, padded_tokens):
    result = perplexity(model, EXAMPLES, padded_tokens=padded_tokens)
    assert model.training  # as before
    wanted, accuracy, tokens = by_hand(model, EXAMPLES)
    assert result.perplexity == pytest.approx(wanted, rel=1e-4)
    assert result.next_token_accuracy == pytest.approx(accuracy)
    assert (result.tokens, result.examples) == (tokens, 4) == (8 + 12 + 1 + 6, 4)


def test_tokens_weigh_the_same_not_examples(model):
    long, short = perplexity(model, [EXAMPLES[1]]), perplexity(model, [EXAMPLES[2]])
    both = perplexity(model, [EXAMPLES[1], EXAMPLES[2]])
    mean = (long.tokens * math.log(long.perplexity) + short.tokens * math.log(short.perplexity)) / both.tokens
    assert math.log(both.perplexity) == pytest.approx(mean, rel=1e-5)


def test_padding_on_either_side(model):
    (right,) = padded_batches(EXAMPLES)
    left = {key: value.clone() for key, value in right.items()}
    for row, length in enumerate(right["attention_mask"].sum(-1).tolist()):
        left = {key: torch.stack([*v[:row], v[row].roll(-length), *v[row + 1 :]]) for key, v in left.items()}
    assert left["attention_mask"][-1].tolist()[:3] == [0, 0, 0]
    model.eval()
    with torch.no_grad():
        one, other = batch_likelihood(model, right), batch_likelihood(model, left)
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1:] == other[1:]


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    model = model_of("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, EXAMPLES).perplexity == pytest.approx(30)


def test_a_model_that_knows_the_answer():
    class Knowing(GPT2LMHeadModel):
        def forward(self, input_ids, **_):
            logits = torch.nn.functional.one_hot((input_ids + 1) % 30, 30) * 100.0
            return type("Output", (), {"logits": logits})

    ids = list(range(3, 12))
    result = perplexity(Knowing(GPT2Config(vocab_size=30, n_embd=4, n_layer=1, n_head=1)), [Example(ids, ids)])
    assert result.perplexity == pytest.approx(1)
    assert result.next_token_accuracy == 100


def test_beyond_the_largest_number_is_infinite():
    class Wrong(GPT2LMHeadModel):
        def forward(self, input_ids, **_):
            return type("Output", (), {"logits": torch.nn.functional.one_hot(input_ids * 0, 30) * 1e6})

    assert perplexity(Wrong(GPT2Config(vocab_size=30, n_embd=4, n_layer=1, n_head=1)), EXAMPLES).perplexity == math.inf


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 100))
def test_batches_hold_everything_within_the_budget(lengths, budget):
    examples = [example(seed, length, 0) for seed, length in enumerate(lengths)]
    rows = []
    for batch in padded_batches(examples, budget):
        assert batch["input_ids"].numel() <= budget or len(batch["input_ids"]) == 1
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            rows.append((ids[mask.bool()].tolist(), labels[mask.bool()].tolist()))
            assert bool((labels[~mask.bool()] == -100).all())
    assert sorted(rows) == sorted((one.input_ids, one.labels) for one in examples)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "the set has no examples"),
        ([Example([3, 4, 5], [-100] * 3)], "none of the 1 examples has a target"),
        ([Example([3], [3])], "none of the 1 examples has a target"),
        ([example(0, 33, 0)], "an example has 33 tokens, the model reads at most 32"),
    ],
)
def test_refusals(examples, message):
    with pytest.raises(UserError, match=message):
        perplexity(model_of("opt"), examples)
