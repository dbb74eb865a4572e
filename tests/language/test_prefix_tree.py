"""Likelihoods read along the branches of a tree, by those of each sequence alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, MambaConfig, MistralConfig

from sparq.attention import install
from sparq.language.prefix_tree import reads_trees, tree_log_likelihoods

SEQUENCES = [[1, 5, 3, 2], [1, 5, 3], [1, 5, 4, 2, 2, 7], [1, 6], [1], [1, 5, 3, 2], [1, 5, 4, 2, 6], [3, 5, 3, 2]]


def alone(model, sequences):
    with torch.no_grad():
        scores = [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in sequences]
    return [
        sum(float(its[place, one]) for place, one in enumerate(ids[1:]))
        for its, ids in zip(scores, sequences, strict=True)
    ]


def counted(model, sequences, *nodes):
    counts = []
    hook = model.register_forward_pre_hook(lambda _, __, kw: counts.append(kw["input_ids"].numel()), with_kwargs=True)
    found = tree_log_likelihoods(model, sequences, *nodes)
    hook.remove()
    return found, counts


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("sink", ["none", "max", "zero", None])
def test_each_sequence_is_judged_as_if_alone_and_each_prefix_read_once(make_tiny, vocabulary, kind, sink):
    model = make_tiny(kind, vocabulary)
    if sink:
        install(model, sink)
    assert reads_trees(model)
    expected = pytest.approx(alone(model, SEQUENCES), rel=1e-6)
    found, counts = counted(model, SEQUENCES)
    assert found == expected
    prefixes = {tuple(ids[:end]) for ids in SEQUENCES for end in range(1, len(ids) + 1)}
    assert sum(counts) == len(prefixes)
    found, counts = counted(model, SEQUENCES, 5)
    assert found == expected
    assert len(counts) > 2
    assert max(counts) == 6  # one sequence is longer
    assert tree_log_likelihoods(model, []) == []


@given(sequences=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), max_size=9), nodes=st.integers(1, 20))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequences_in_trees_of_any_size(model, sequences, nodes):
    found, counts = counted(model, sequences, nodes)
    assert found == pytest.approx(alone(model, sequences), abs=1e-5)
    assert all(count <= max(nodes, 6) for count in counts)


@pytest.fixture
def model(make_tiny, vocabulary):
    return make_tiny("llama", vocabulary)


def test_a_model_in_training_stays_so(model):
    tree_log_likelihoods(model.train(), SEQUENCES)
    assert model.training


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=9),
        FalconConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9, alibi=True),
        MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=9),
        MistralConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=9,
            intermediate_size=16, sliding_window=4096,
        ),
        MistralConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=9,
            intermediate_size=16, sliding_window=2, layer_types=["sliding_attention"],
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_models_that_place_or_hide_tokens_by_their_own_rule_read_none(config):
    assert not reads_trees(AutoModelForCausalLM.from_config(config))
