"""Generation against a second implementation without cache, padding or transformers' search."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparq.attention import install
from sparq.errors import UserError
from sparq.language.generating import generating
from sparq.language.generation import GenerationOptions, generate
from sparq.language.tasks import TASKS, prompt
from sparq.language.vocabulary import Modality
from sparq.quantization import QuantizationConfig, quantize

TEXT, SPEECH = Modality.TEXT, Modality.SPEECH
SAMPLING = GenerationOptions(method="sample", temperature=0.8, top_p=0.9, top_k=20, seed=3, max_pieces=12)


def prompts_of(vocabulary, target, count=5):
    random = np.random.default_rng(1)
    if target == TEXT:
        return [prompt(TASKS["asr"], vocabulary, random.integers(0, 12, n)) for n in random.permutation(count) * 4 + 1]
    texts = ["what time is it", "the sea", "how much wood would it chuck", "she", "it's ten past nine now"]
    return [prompt(TASKS["tts"], vocabulary, text) for text in texts[:count]]


@torch.no_grad()
def log_probabilities(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().log_softmax(-1)


def plain_greedy(model, vocabulary, ids, target, most, least=1):
    """Greedy search one prompt at a time, the whole prefix computed again at each step."""
    allowed = torch.from_numpy(vocabulary.allowed(target))
    made = []
    while len(made) < most:
        scores = log_probabilities(model, ids + made).masked_fill(~allowed, -torch.inf)
        if len(made) < least:
            scores[vocabulary.end_id] = -torch.inf
        best = int(scores.argmax())
        if best == vocabulary.end_id:
            break
        made.append(best)
    return made


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("target", [TEXT, SPEECH])
def test_batched_and_cached_is_one_by_one_and_uncached(make_tiny, joint_vocabulary, kind, target):
    model = make_tiny(kind, joint_vocabulary)
    prompts = prompts_of(joint_vocabulary, target)
    expected = [plain_greedy(model, joint_vocabulary, ids, target, 15) for ids in prompts]
    assert len({tuple(ids) for ids in expected}) == len(prompts), "different prompts should be answered differently"
    for batch in (1, 2, 16):
        options = GenerationOptions(max_pieces=15)
        assert generate(model, joint_vocabulary, prompts, target, options, batch=batch) == expected


@pytest.mark.parametrize("sink", ["none", "zero", "max", "mean", "learned"])
def test_with_outlier_free_attention(make_tiny, joint_vocabulary, sink):
    model = install(make_tiny("llama", joint_vocabulary), sink)
    if sink == "learned":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "sink_logit" in name:
                    parameter.fill_(2.0)
    prompts = prompts_of(joint_vocabulary, SPEECH)
    expected = [plain_greedy(model, joint_vocabulary, ids, SPEECH, 10) for ids in prompts]
    assert generate(model, joint_vocabulary, prompts, SPEECH, GenerationOptions(max_pieces=10)) == expected
    one, many = (generate(model, joint_vocabulary, prompts, SPEECH, BEAM, batch=batch) for batch in (1, 8))
    assert one == many


def test_with_simulated_quantisation(make_tiny, joint_vocabulary):
    model = install(make_tiny("llama", joint_vocabulary), "max")
    prompts = prompts_of(joint_vocabulary, TEXT)
    before = generate(model, joint_vocabulary, prompts, TEXT, GenerationOptions(max_pieces=10))
    quantize(model, QuantizationConfig(method="round", weight_bits=4, activation_bits=4))
    expected = [plain_greedy(model, joint_vocabulary, ids, TEXT, 10) for ids in prompts]
    assert generate(model, joint_vocabulary, prompts, TEXT, GenerationOptions(max_pieces=10)) == expected != before


BEAM = GenerationOptions(method="beam", beams=4, max_pieces=8)


@pytest.mark.parametrize("options", [BEAM, SAMPLING], ids=lambda o: o.method)
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_what_comes_out_does_not_depend_on_the_batch(make_tiny, vocabulary, options, kind):
    model = make_tiny(kind, vocabulary)
    prompts = prompts_of(vocabulary, SPEECH)
    found = [generate(model, vocabulary, prompts, SPEECH, options, batch=batch) for batch in (1, 3, 16)]
    assert found[0] == found[1] == found[2]


def test_beam_of_one_is_greedy(make_tiny, vocabulary):
    model = make_tiny("llama", vocabulary)
    prompts = prompts_of(vocabulary, TEXT)
    greedy = generate(model, vocabulary, prompts, TEXT, GenerationOptions(max_pieces=10))
    one = GenerationOptions(method="beam", beams=1, max_pieces=10)
    assert generate(model, vocabulary, prompts, TEXT, one) == greedy


class Small:
    """A vocabulary of six ids, so that every answer can be tried."""

    size, pad_id, end_id = 6, 0, 5
    modality = np.array([0, 0, 2, 2, 1, 0], np.int8)

    def allowed(self, target):
        mask = self.modality == target
        mask[self.end_id] = True
        return mask


def opinionated(make_tiny, seed):
    """A model of `Small` that does not find all answers about as likely."""
    model = make_tiny("llama", Small())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.3)
    return model


def all_answers(model, prompts, most, penalty):
    """Every answer of `Small` to all of some prompts, the best in the mean first."""
    scores = {}
    for length in range(1, most + 1):
        for answer in itertools.product((2, 3), repeat=length):
            # The end counts as a piece; an answer as long as allowed needs none, but may not have one.
            tail = [*answer, 5] if length < most else list(answer)
            steps = [(one, i) for one in prompts for i in range(len(tail))]
            found = sum(float(log_probabilities(model, one + tail[:i])[tail[i]]) for one, i in steps)
            scores[answer] = found / len(prompts) / len(tail) ** penalty
    return sorted(map(list, scores), key=lambda answer: -scores[tuple(answer)])


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_wide_beam_finds_the_best_of_all_answers(make_tiny, penalty, seed):
    model, most = opinionated(make_tiny, seed), 4
    options = GenerationOptions(method="beam", beams=20, length_penalty=penalty, max_pieces=most)
    best, *_ = all_answers(model, [[1, 4]], most, penalty)
    assert generate(model, Small(), [[1, 4]], SPEECH, options) == [best]


@settings(deadline=None, max_examples=25)
@given(
    target=st.sampled_from([TEXT, SPEECH]),
    method=st.sampled_from(["greedy", "sample", "beam"]),
    least=st.integers(0, 4),
    more=st.integers(0, 4),
    seed=st.integers(0, 100),
    beams=st.integers(1, 6),
)
def test_modality_and_length_are_held(make_session_model, vocabulary, target, method, least, more, seed, beams):
    """Even by a model that would rather say something else."""
    most = max(1, least + more)
    options = GenerationOptions(method, beams, temperature=3.0, seed=seed, min_pieces=least, max_pieces=most)
    for ids in generate(make_session_model(vocabulary), vocabulary, [[vocabulary.end_id]] * 2, target, options):
        assert {int(vocabulary.modality[i]) for i in ids} <= {int(target)}
        assert vocabulary.end_id not in ids
        assert least <= len(ids) <= most


@pytest.mark.parametrize(
    "options", [GenerationOptions(max_pieces=12), SAMPLING, GenerationOptions("beam", max_pieces=12)]
)
def test_only_the_first_piece_is_held_to_beginnings(make_tiny, joint_vocabulary, options):
    model = make_tiny("llama", joint_vocabulary)
    prompts = prompts_of(joint_vocabulary, SPEECH)
    free = generate(model, joint_vocabulary, prompts, SPEECH, options)
    beginnings = joint_vocabulary.allowed(SPEECH)
    beginnings[[joint_vocabulary.end_id, *(ids[0] for ids in free)]] = False
    held = generate(model, joint_vocabulary, prompts, SPEECH, options, beginnings=beginnings)
    assert all(beginnings[ids[0]] for ids in held)
    assert not all(beginnings[piece] for ids in held for piece in ids[1:]), "the others should not be held"
    for batch in (1, 2):
        assert generate(model, joint_vocabulary, prompts, SPEECH, options, batch=batch, beginnings=beginnings) == held
    if options.method == "greedy":
        for ids, begun in zip(prompts, held, strict=True):
            assert begun[1:] == plain_greedy(model, joint_vocabulary, [*ids, begun[0]], SPEECH, 11)


def test_sampling_follows_the_models_distribution(make_tiny):
    vocabulary = Small()
    model = make_tiny("llama", vocabulary)
    wanted = log_probabilities(model, [1, 4])[[2, 3]].softmax(-1)[0].item()
    options = GenerationOptions(method="sample", max_pieces=1)
    made = generate(model, vocabulary, [[1, 4]] * 4000, SPEECH, options, batch=1000)
    share = sum(ids == [2] for ids in made) / len(made)
    assert 0.05 < wanted < 0.95
    assert abs(share - wanted) < 0.03
    cold = GenerationOptions(method="sample", max_pieces=1, temperature=1e-4)
    narrow = GenerationOptions(method="sample", max_pieces=1, top_k=1)
    likeliest = [[2 if wanted > 0.5 else 3]] * 50
    for options in (cold, narrow, GenerationOptions(method="sample", max_pieces=1, top_p=1e-4)):
        assert generate(model, vocabulary, [[1, 4]] * 50, SPEECH, options) == likeliest


def test_seeds(make_tiny, joint_vocabulary):
    model = make_tiny("llama", joint_vocabulary)
    prompts = prompts_of(joint_vocabulary, SPEECH)
    state = torch.random.get_rng_state()
    made = [
        generate(model, joint_vocabulary, prompts, SPEECH, GenerationOptions(method="sample", seed=seed, max_pieces=12))
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is nobody's to move"


@pytest.mark.parametrize("method", ["greedy", "beam"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generation_stops_where_positions_end(make_tiny, joint_vocabulary, method, kind):
    """And a long prompt does not shorten what its neighbours get."""
    model = make_tiny(kind, joint_vocabulary, positions=24)
    prompts = [[2, *[7] * n] for n in (3, 14, 20, 22, 20)]
    options = GenerationOptions(method, 2, min_pieces=12, max_pieces=12)
    made = generate(model, joint_vocabulary, prompts, SPEECH, options)
    assert [len(ids) for ids in made] == [12, 9, 3, 1, 3]
    assert made == [generate(model, joint_vocabulary, [ids], SPEECH, options)[0] for ids in prompts]


def test_prompts_that_cannot_be_continued(make_tiny, joint_vocabulary):
    model = make_tiny("llama", joint_vocabulary, positions=8)
    with pytest.raises(UserError, match="prompt 1: has 8 pieces, but the model has only 8 positions"):
        generate(model, joint_vocabulary, [[2], [2] * 8], TEXT)
    with pytest.raises(UserError, match="prompt 0: is empty"):
        generate(model, joint_vocabulary, [[]], TEXT)
    assert generate(model, joint_vocabulary, [], TEXT) == []


def test_the_model_is_left_as_it_was_and_its_own_settings_do_not_count(make_tiny, joint_vocabulary):
    model = make_tiny("llama", joint_vocabulary, attention_dropout=0.5)
    prompts = prompts_of(joint_vocabulary, SPEECH)
    options = GenerationOptions(max_pieces=12)
    plain = generate(model, joint_vocabulary, prompts, SPEECH, options)
    own = model.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.suppress_tokens = 5.0, 1, plain[0][:1]
    model.train()
    assert generate(model, joint_vocabulary, prompts, SPEECH, options) == plain
    assert model.training
    assert model.generation_config is own


def test_calls_that_overlap_leave_the_model_as_it_was(make_tiny, joint_vocabulary):
    """Whichever ends first: the settings of before come back with the last."""
    model = make_tiny("llama", joint_vocabulary)
    own = model.generation_config
    model.train()
    first, second = generating(model), generating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model.training
    assert model.generation_config is not own
    second.__exit__(None, None, None)
    assert model.training
    assert model.generation_config is own


@pytest.mark.parametrize("temperature", [1, 2, np.float32(0.7)])
def test_any_number_is_a_temperature(make_tiny, joint_vocabulary, temperature):
    model, prompts = make_tiny("llama", joint_vocabulary), prompts_of(joint_vocabulary, TEXT)
    found, wanted = (
        generate(model, joint_vocabulary, prompts, TEXT, dataclasses.replace(SAMPLING, temperature=its))
        for its in (temperature, float(temperature))
    )
    assert found == wanted


def test_output_layer_wider_than_the_vocabulary(make_tiny, joint_vocabulary):
    model = make_tiny("llama", joint_vocabulary)
    before = generate(model, joint_vocabulary, [[3, 7, 4]], TEXT, GenerationOptions(max_pieces=5))
    model.resize_token_embeddings(128)
    with torch.no_grad():
        model.lm_head.weight[joint_vocabulary.size :] = 100.0
    assert generate(model, joint_vocabulary, [[3, 7, 4]], TEXT, GenerationOptions(max_pieces=5)) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "nucleus"}, "method: 'nucleus'"),
        ({"beams": 0}, "beams: 0 "),
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"temperature": float("inf")}, "temperature: inf"),
        ({"temperature": "0.5"}, "temperature: '0.5'"),
        ({"temperature": True}, "temperature: True"),
        ({"length_penalty": float("nan")}, "length_penalty: nan"),
        ({"top_p": None}, "top_p: None"),
        ({"top_p": 1.5}, "top_p: 1.5"),
        ({"top_k": -1}, "top_k: -1"),
        ({"max_pieces": 0}, "max_pieces: 0"),
        ({"max_pieces": 2.5}, "max_pieces: 2.5"),
        ({"min_pieces": 9, "max_pieces": 8}, "min_pieces: 9"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_impossible_options(settings, message):
    with pytest.raises(UserError, match=message):
        GenerationOptions(**settings)
