"""PiSSA, MiLoRA and LoftQ: against a singular value decomposition, and inside every architecture."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from test_lora import CONFIGS, WIDTH, build, ids
from transformers import OPTConfig, OPTForCausalLM

from sparq.adaptation.examples import ExampleStream
from sparq.adaptation.initialisers import loftq, singular_factors
from sparq.adaptation.lora import add_lora, merge_lora
from sparq.adaptation.packed_linear import storage_grid
from sparq.adaptation.start import new_model
from sparq.adaptation.training import adapt
from sparq.attention import install
from sparq.config import INITIALISATIONS, AdaptationConfig, LoraConfig
from sparq.errors import UserError

INSIDE = ("pissa", "milora")  # the adapters start as something, the model as it was
# rank, alpha: a scaling above, at and below 1; the last rank is larger than some of the linears have singular values.
PAIRS = [(4, 8.0), (4, 4.0), (8, 2.0), (20, 5.0)]
# The shape of opt-350m's peculiarity: norms behind the residual sum, embeddings narrower than the model.
POST_NORM = OPTConfig(
    hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, ffn_dim=24, word_embed_proj_dim=8,
    max_position_embeddings=32, do_layer_norm_before=False, vocab_size=40, pad_token_id=0, bos_token_id=None,
    eos_token_id=1, tie_word_embeddings=False,
)  # fmt: skip
KINDS = [*CONFIGS, "opt-post-norm"]


def make(kind):
    if kind != "opt-post-norm":
        return build(kind)
    torch.manual_seed(0)
    model = OPTForCausalLM(POST_NORM).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model


def random_matrix(rows, columns, seed, rank=None):
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (rows, columns))
    return left @ right.T


# ---- singular values


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.booleans(), st.integers(0, 1000))
def test_the_part_taken_is_that_of_the_decomposition(rows, columns, rank, smallest, seed):
    matrix = random_matrix(rows, columns, seed)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    chosen = slice(-rank, None) if smallest else slice(rank)
    u, s, v = u[:, chosen], s[chosen], v[chosen]
    factors = singular_factors(matrix, rank, smallest=smallest)
    torch.testing.assert_close(factors.product, u * s @ v, rtol=1e-8, atol=1e-8)
    # Each factor has the root of the singular value, so that both learn at one speed.
    torch.testing.assert_close(factors.left.norm(dim=0), s.sqrt(), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(factors.right.norm(dim=1), s.sqrt(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("smallest", [False, True])
def test_singular_values_of_nothing_are_left_out(smallest):
    matrix = random_matrix(12, 9, 0, rank=3)
    factors = singular_factors(matrix, 5, smallest=smallest)
    assert factors.right.shape == (3, 9)
    torch.testing.assert_close(factors.product, matrix)
    assert singular_factors(torch.zeros(4, 6), 2).left.shape == (4, 0)


# ---- LoftQ


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(48, 64), (64, 40)])
def test_loftq_is_closer_than_plain_quantisation_and_more_iterations_do_no_harm(bits, shape):
    weight, grid = random_matrix(*shape, 3).float(), storage_grid(bits)
    plain = float((weight - grid(weight)).double().norm())
    best = plain
    for iterations in range(1, 9):
        start = loftq(weight, 8, grid, iterations)
        left = float((weight.double() - start.base.double() - start.factors.product).norm())
        assert left == pytest.approx(min(start.errors))
        assert left <= best * (1 + 1e-9)
        best = left
        assert torch.equal(grid(start.base), start.base) or bits == 8
    # The first iteration takes the largest singular values out of the plain error, exactly.
    values = torch.linalg.svdvals((weight - grid(weight)).double())
    assert start.errors[0] == pytest.approx(float(values[8:].norm()))
    assert start.errors[0] < plain
    assert best < start.errors[0]


def test_the_error_of_a_single_iteration_may_rise():
    """Rounding to nearest does not minimise over grids whose scales follow the weight; hence the best is kept."""
    rises = 0
    for seed in range(6):
        errors = loftq(random_matrix(32, 64, seed).float(), 4, storage_grid(4), 10).errors
        rises += any(later > earlier for earlier, later in itertools.pairwise(errors))
    assert rises > 0


def test_decomposing_never_raises_the_error_of_its_step():
    """What is guaranteed of each iteration: ‖W − Q − S‖ ≤ ‖W − Q − S'‖ for any other S' of that rank."""
    weight, grid = random_matrix(24, 64, 5).float(), storage_grid(4)
    removed = torch.zeros(24, 64, dtype=torch.float64)
    for iterations in range(1, 5):
        base = grid((weight.double() - removed).float()).double()
        before = float((weight.double() - base - removed).norm())
        assert loftq(weight, 4, grid, iterations).errors[-1] <= before
        removed = singular_factors(weight.double() - base, 4).product


@pytest.mark.parametrize(("rank", "alpha"), PAIRS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loftq_in_a_model_counts_with_the_scaling(kind, bits, rank, alpha):
    """In each linear base + alpha / rank · B·A is nearer to the weight than the quantised weight is."""
    model, grid = build(kind).float(), storage_grid(bits)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    config = LoraConfig(rank=rank, alpha=alpha, initialisation="loftq")
    adapted = add_lora(model, config, grid=grid)
    checked = 0
    for name, module in adapted.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            weight, base = weights[f"{name}.weight"], module.base_layer.weight
            weight, base = (weight.T, base.T) if kind == "gpt2" else (weight, base)
            # Written out, and not by PEFT's own account of it.
            delta = alpha / rank * module.lora_B["default"].weight @ module.lora_A["default"].weight
            assert (weight - base - delta).norm() < 0.95 * (weight - grid(weight)).norm()
            torch.testing.assert_close(grid(base), base)
            checked += 1
    assert checked == {"llama": 14, "gpt2": 8}[kind]


# ---- in models


@pytest.mark.parametrize(("rank", "alpha"), PAIRS)
@pytest.mark.parametrize("initialisation", INSIDE)
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_at_first_what_it_was(kind, initialisation, rank, alpha):
    model = make(kind)
    with torch.no_grad():
        plain = model(ids()).logits
        adapted = add_lora(model, LoraConfig(rank=rank, alpha=alpha, initialisation=initialisation)).eval()
        torch.testing.assert_close(adapted(ids()).logits, plain, rtol=1e-9, atol=1e-9)
        with adapted.disable_adapter():
            assert (adapted(ids()).logits - plain).abs().max() > 1e-6  # something was taken out of the weights
        merged = merge_lora(adapted)
        torch.testing.assert_close(merged(ids()).logits, plain, rtol=1e-9, atol=1e-9)
    assert merged.state_dict().keys() == make(kind).state_dict().keys()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_pissa_has_the_large_singular_values_and_milora_the_small_ones(kind):
    weights = {name: value.detach().clone() for name, value in build(kind).named_parameters()}
    for initialisation in INSIDE:
        adapted = add_lora(build(kind), LoraConfig(rank=3, alpha=7, initialisation=initialisation))
        for name, module in adapted.get_base_model().named_modules():
            if hasattr(module, "lora_A"):
                values = torch.linalg.svdvals(weights[f"{name}.weight"])
                inside = torch.linalg.svdvals(module.get_delta_weight("default"))[:3]
                outside = torch.linalg.svdvals(module.base_layer.weight)[: len(values) - 3]
                taken, left = (values[:3], values[3:]) if initialisation == "pissa" else (values[-3:], values[:-3])
                torch.testing.assert_close(inside, taken)
                torch.testing.assert_close(outside, left)


def test_ranks_beyond_the_singular_values_are_lora_as_it_was():
    adapted = add_lora(build("llama"), LoraConfig(rank=20, initialisation="pissa"))
    narrow = adapted.get_base_model().model.layers[0].self_attn.k_proj  # [8, 16]
    assert narrow.lora_A["default"].weight[8:].abs().min() > 0
    assert not narrow.lora_B["default"].weight[:, 8:].any()


def disturb(adapted):
    """As training does: the adapters move away from where they started."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1)


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_compute_the_same_and_saved_ones_come_back(kind, initialisation):
    config = LoraConfig(rank=4, alpha=6, initialisation=initialisation)
    adapted = add_lora(make(kind), config, grid=storage_grid(4)).eval()
    disturb(adapted)
    # Beside another adapted model, which takes the same out of its weights; this is how a checkpoint is read.
    twin = add_lora(make(kind), dataclasses.replace(config), grid=storage_grid(4)).eval()
    with torch.no_grad():
        expected = adapted(ids()).logits
        assert (twin(ids()).logits - expected).abs().max() > 1e-3
        set_peft_model_state_dict(twin, get_peft_model_state_dict(adapted))
        assert torch.equal(twin(ids()).logits, expected)
        torch.testing.assert_close(merge_lora(adapted)(ids()).logits, expected, rtol=1e-9, atol=1e-9)


# ---- in training


BASE = AdaptationConfig(
    steps=20, batch_bins=200, learning_rate=1e-2, schedule="constant", warmup_steps=0, log_every=1, save_every=10
)


@pytest.fixture
def stream(vocabulary, make_sentences):
    return ExampleStream(make_sentences(30, shortest=1, longest=3), vocabulary, {"asr": 1, "tts": 1}, BASE.batch_bins)


@pytest.mark.parametrize("initialisation", INSIDE)
def test_training_learns_and_goes_on_from_its_checkpoint(vocabulary, tiny_shape, stream, tmp_path, initialisation):
    lora = LoraConfig(rank=4, alpha=4, dropout=0.0, initialisation=initialisation)
    config = dataclasses.replace(BASE, method="lora", lora=lora)
    shape = dataclasses.replace(tiny_shape, dropout=0.0)

    def train(folder, steps):
        model = install(new_model(shape, vocabulary), "max")
        return adapt(model, stream, dataclasses.replace(config, steps=steps), tmp_path / folder)

    whole = train("whole", 20)
    losses = [entry["loss"] for entry in whole.history if "loss" in entry]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    train("parts", 10)
    resumed = train("parts", 20)
    assert resumed.history[-1]["step"] == 20
    for value, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_loftq_without_a_quantised_base_is_refused():
    with pytest.raises(UserError, match=r"lora\.initialisation: loftq \(expected with method: qlora"):
        AdaptationConfig(steps=1, method="lora", lora=LoraConfig(initialisation="loftq"))
