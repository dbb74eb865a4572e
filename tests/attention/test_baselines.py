"""Clipped softmax and gated attention: their definitions, and installed in tiny models of every architecture."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn.functional import linear
from transformers import AttentionInterface, AutoModelForCausalLM, StaticCache

from sparq.attention import AttentionSettings, attention, install, installed, load_pretrained, probabilities
from sparq.attention.gate import HeadGate
from sparq.attention.install import attention_modules
from sparq.attention.softmax import clipped
from sparq.errors import UserError

PADDING = 1
GATED = {"sink": "none", "gate": "per_token"}
VARIANTS = {
    "clipped": {"sink": "clipped", "gamma": -0.1, "zeta": 1.05},
    "gated": GATED,
    "gated from nothing": {**GATED, "gate_pretrained": False},
    "gated max": {"sink": "max", "gate": "per_token"},
    "gated and clipped": {"sink": "clipped", "gamma": -0.1, "gate": "per_token"},
}


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


def ids(batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 29, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, tokens: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids() if tokens is None else tokens, **more).logits


def gates(model: Any) -> list[HeadGate]:
    return [module.head_gate for _, module in attention_modules(model)]


def open_and_close(model: Any) -> None:
    """Give gates, if there are any, weights with which every token and head is let through differently."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "head_gate" in name:
                parameter.normal_(0, 2, generator=generator)


def put_in(model: Any, variant: dict[str, Any]) -> Any:
    open_and_close(install(model, **variant))
    return model


# ---- definitions


def test_clipping_by_hand() -> None:
    p = torch.tensor([0.0, 0.02, 0.1, 0.5, 0.999, 1.0], dtype=torch.float64)
    # γ = −0.025: 1.025·p − 0.025, where 0.02 and all below 0.0244 give exactly nothing
    wanted = torch.tensor([0, 0, 0.0775, 0.4875, 0.998975, 1], dtype=torch.float64)
    torch.testing.assert_close(clipped(p, -0.025, 1.0), wanted, rtol=0, atol=1e-15)
    # ζ = 1.03 as well: 1.055·p − 0.025, cut off at 1
    wanted = torch.tensor([0, 0, 0.0805, 0.5025, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(clipped(p, -0.025, 1.03), wanted, rtol=0, atol=1e-15)


@settings(deadline=None, max_examples=40)
@given(
    gamma=st.floats(-2, 0),
    zeta=st.floats(1, 3),
    keys=st.integers(1, 30),
    spread=st.floats(0.1, 40),
    seed=st.integers(0),
)
def test_properties_of_clipping(gamma: float, zeta: float, keys: int, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    scores = torch.randn(1, 1, 3, keys + 1, dtype=torch.float64, generator=generator) * spread
    scores[..., -1] = -math.inf
    vanilla = probabilities(scores, "none")
    p = probabilities(scores, "clipped", gamma=gamma, zeta=zeta)
    assert (p[..., -1] == 0).all(), "what is hidden stays hidden"
    assert p.min() >= 0
    assert p.max() <= 1
    threshold = -gamma / (zeta - gamma)
    assert (p[vanilla <= threshold * (1 - 1e-9)] == 0).all()
    assert (p[vanilla >= (1 - gamma) / (zeta - gamma) * (1 + 1e-9)] >= 1 - 1e-12).all()
    if zeta == 1:
        assert p.sum(-1).max() <= 1 + 1e-12
    order = vanilla.argsort(-1)
    assert (p.gather(-1, order).diff(dim=-1) >= 0).all(), "clipping keeps the order"


def test_without_stretching_it_is_vanilla_in_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 6, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    outputs, gradients = [], []
    for sink in ("none", "clipped"):
        output, _ = attention(q, k, v, sink, causal=True, gamma=0.0, zeta=1.0)
        outputs.append(output)
        gradients.append(torch.autograd.grad(output.square().sum(), (q, k, v)))
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_gradients_of_clipping() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(1, 2, 3, 6, dtype=torch.float64, generator=generator) * 2).requires_grad_()
    p = probabilities(scores, "clipped", gamma=-0.1, zeta=1.1)
    share = (p == 0).double().mean()
    assert 0.1 < share < 0.9, "some are clipped, some are not"
    assert torch.autograd.gradcheck(lambda s: probabilities(s, "clipped", gamma=-0.1, zeta=1.1), scores)
    # The point of it: what is clipped to zero has no gradient to grow its logit by.
    row = torch.tensor([[[[5.0, -5.0, 5.0]]]], dtype=torch.float64, requires_grad=True)
    zero = probabilities(row, "clipped", gamma=-0.1)[..., 1]
    assert zero.item() == 0
    assert (torch.autograd.grad(zero.sum(), row)[0] == 0).all()


def gate(heads: int = 3, width: int = 4, opening: float = 0.25, *, pretrained: bool = True, seed: int = 0) -> HeadGate:
    return HeadGate(
        heads, width, opening, pretrained=pretrained, seed=seed, dtype=torch.float64, device=torch.device("cpu")
    )


@pytest.mark.parametrize("opening", [0.25, 0.5, 0.9])
def test_gate_without_weights_is_its_opening(opening: float) -> None:
    states = torch.randn(2, 5, 12, dtype=torch.float64)
    for pretrained, wanted in ((False, opening), (True, 1.0)):
        made = gate(opening=opening, pretrained=pretrained)
        torch.nn.init.zeros_(made.weight)
        torch.testing.assert_close(made(states), torch.full((2, 5, 3), wanted, dtype=torch.float64), rtol=1e-15, atol=0)


def test_gate_is_one_linear_a_head_on_its_slice() -> None:
    made, states = gate(), torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        made.weight.normal_()
        made.bias.normal_()
    by_head = [
        4 * torch.sigmoid(linear(states[..., 4 * h : 4 * h + 4], made.weight[h], made.bias[h : h + 1]))
        for h in range(3)
    ]
    torch.testing.assert_close(made(states), torch.cat(by_head, -1), rtol=1e-13, atol=0)
    parameters = dict(made.named_parameters())

    def function(states: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(made, dict(zip(parameters, values, strict=True)), (states,))

    assert torch.autograd.gradcheck(function, (states, *parameters.values()))


def test_new_gates_of_a_pretrained_model_are_nearly_one() -> None:
    made = gate(heads=50, width=200)
    assert made.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert made.weight.mean().abs() < 5e-5
    states = torch.randn(4, 6, 50 * 200, dtype=torch.float64)
    assert (made(states) - 1).abs().max() < 0.08
    from_nothing = gate(heads=50, width=200, pretrained=False)
    assert from_nothing.weight.abs().max() <= 200**-0.5
    assert from_nothing.weight.std().item() == pytest.approx(200**-0.5 / math.sqrt(3), rel=0.05)
    assert from_nothing(states).mean().item() == pytest.approx(0.25, abs=0.02)


def test_new_gates_are_the_same_wherever_they_are_drawn() -> None:
    torch.manual_seed(1)
    one = gate(seed=3).weight
    torch.manual_seed(2)
    assert torch.equal(gate(seed=3).weight, one)
    assert not torch.equal(gate(seed=4).weight, one)


# ---- in models


@contextmanager
def written_out(model: Any, variant: dict[str, Any]) -> Iterator[None]:
    """Gate the input of the output projection head by head, from what was caught in front of the attention."""
    caught: dict[str, torch.Tensor] = {}
    handles = []

    def catch(name: str) -> Any:
        def hook(_: Any, arguments: tuple, keywords: dict) -> None:
            caught[name] = (arguments or (keywords["hidden_states"],))[0]

        return hook

    def multiply(name: str, module: Any) -> Any:
        def hook(_: Any, arguments: tuple) -> tuple:
            (heads,) = arguments
            count, width = module.config.num_attention_heads, module.config.hidden_size // 4
            own = heads.shape[-1] // count
            made = []
            for h in range(count):
                number = linear(
                    caught[name][..., h * width : (h + 1) * width],
                    module.head_gate.weight[h],
                    module.head_gate.bias[h : h + 1],
                )
                factor = 1 if variant.get("gate_pretrained") is False else 4
                made.append(heads[..., h * own : (h + 1) * own] * torch.sigmoid(number) * factor)
            return (torch.cat(made, -1),)

        return hook

    for name, module in attention_modules(model):
        output = next(
            getattr(module, part) for part in ("out_proj", "o_proj", "c_proj", "dense") if hasattr(module, part)
        )
        handles.append(module.register_forward_pre_hook(catch(name), with_kwargs=True))
        handles.append(output.register_forward_pre_hook(multiply(name, module)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def clip_by_hand(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
    groups = query.shape[1] // key.shape[1]
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key.repeat_interleave(groups, 1)) * scaling
    blocked = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
    weights = torch.softmax(scores + blocked if mask is None else scores.masked_fill(~mask, -torch.inf), -1)
    weights = torch.minimum(torch.maximum(1.15 * weights - 0.1, torch.zeros(())), torch.ones(()))
    return torch.einsum("bhqk,bhkd->bqhd", weights, value.repeat_interleave(groups, 1)), weights


def test_clipped_softmax_in_a_model(tiny: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind)
    own = logits(model)
    given = logits(install(model, **VARIANTS["clipped"]))
    assert (given - own).abs().max() > 1e-3
    monkeypatch.setattr("sparq.attention.softmax.attention", None)  # the reference must not come from here
    monkeypatch.setitem(AttentionInterface._global_mapping, model.config._attn_implementation, clip_by_hand)
    torch.testing.assert_close(logits(model), given, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["gated", "gated from nothing"])
def test_gates_in_a_model(tiny: Any, kind: str, name: str) -> None:
    model = tiny(kind)
    own = logits(model)
    given = logits(put_in(model, VARIANTS[name]))
    assert (given - own).abs().max() > 1e-3
    install_none = copy.deepcopy(model)
    with written_out(model, VARIANTS[name]):
        # The reference computes with transformers' own attention, which takes no notice of the gates.
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(logits(model), given, rtol=0, atol=1e-9)
    install(install_none, "none")
    torch.testing.assert_close(logits(install_none), own, rtol=0, atol=1e-9)
    assert not any("head_gate" in part for part in install_none.state_dict())
    assert all(not module._forward_pre_hooks for _, module in attention_modules(install_none))


def test_a_pretrained_model_starts_nearly_as_what_it_was(tiny: Any, kind: str) -> None:
    model = tiny(kind).float()
    for parameter in model.parameters():  # of the usual size again, so that the gates' small weights meet small inputs
        if parameter.dim() > 1:
            parameter.data.div_(15)
    own = logits(model)
    gated = logits(install(model, "none", gate="per_token"))
    assert 0 < (gated - own).abs().max() < 0.01 * own.abs().max()


def test_gates_go_with_every_sink_and_form(tiny: Any) -> None:
    for sink in ("none", "zero", "max", "mean", "learned"):
        fused, plain = (
            put_in(tiny("llama"), {**GATED, "sink": sink, "implementation": how}) for how in ("fused", "plain")
        )
        torch.testing.assert_close(logits(fused), logits(plain), rtol=0, atol=1e-9)
        ungated = logits(install(fused, sink))
        assert (ungated - logits(plain)).abs().max() > 1e-3


def test_cached_equals_uncached_greedy_generation(tiny: Any, kind: str, variant: dict[str, Any]) -> None:
    model = put_in(tiny(kind), variant)
    prompt = ids(length=6)
    mask = torch.ones_like(prompt)
    mask[0, :2] = 0
    prompt[0, :2] = PADDING
    how = {"attention_mask": mask, "max_new_tokens": 7, "do_sample": False, "eos_token_id": None}
    cached = model.generate(prompt, use_cache=True, **how)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **how))
    assert len(set(cached[:, 6:].flatten().tolist())) > 1, "a constant continuation proves little"


def test_static_cache(tiny: Any, variant: dict[str, Any]) -> None:
    model = put_in(tiny("llama"), variant)
    tokens = ids(length=6)
    cache = StaticCache(config=model.config, max_cache_len=12)
    with torch.no_grad():
        first = model(input_ids=tokens[:, :5], past_key_values=cache)
        last = model(input_ids=tokens[:, 5:], past_key_values=cache)
    parts = torch.cat([first.logits, last.logits], 1)
    torch.testing.assert_close(parts, logits(model, tokens), rtol=0, atol=1e-10)


def test_left_padding_changes_nothing(tiny: Any, kind: str, variant: dict[str, Any]) -> None:
    model = put_in(tiny(kind), variant)
    tokens = ids(batch=1, length=6)
    padded = torch.cat([torch.full((1, 3), PADDING), tokens], 1)
    mask = (torch.arange(9) >= 3).long()[None]
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    given = logits(model, padded, attention_mask=mask, position_ids=places)[:, 3:]
    torch.testing.assert_close(given, logits(model, tokens), rtol=0, atol=1e-9)


def test_training_reaches_every_gate(tiny: Any, kind: str) -> None:
    model = install(tiny(kind), "max", gate="per_token").train()
    tokens = ids()
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    model(input_ids=tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss.backward()
    assert len(gates(model)) == 2
    for made in gates(model):
        assert made.weight.grad.abs().amax(-1).min() > 0
        assert made.bias.grad.abs().min() > 0


def test_gradient_checkpointing_gives_the_same_gradients(tiny: Any) -> None:
    for kind in ("llama", "gpt2", "opt"):
        gradients = []
        for checkpointing in (False, True):
            model = put_in(tiny(kind, attention_dropout=0.0) if kind != "gpt2" else tiny(kind, attn_pdrop=0.0), GATED)
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model(input_ids=ids(), labels=ids()).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
        assert sum("head_gate" in name for name in gradients[0]) == 4
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_bfloat16_autocast(tiny: Any, variant: dict[str, Any]) -> None:
    model = install(tiny("qwen3").float(), **variant).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids(), labels=ids()).loss
    loss.backward()
    assert torch.isfinite(loss)
    exact = install(tiny("qwen3").float(), **variant)(input_ids=ids(), labels=ids()).loss
    assert loss.item() == pytest.approx(exact.item(), rel=0.15)


# ---- recorded, saved and read


def test_alpha_is_gamma_over_the_longest_sequence(tiny: Any, kind: str) -> None:
    model = install(tiny(kind), "clipped", alpha=12)  # 64 positions
    assert installed(model) == AttentionSettings("clipped", "plain", gamma=-12 / 64)
    other = install(tiny(kind), "clipped", gamma=-0.1875)
    assert torch.equal(logits(model), logits(other))


def test_two_models_with_different_clipping_side_by_side(tiny: Any) -> None:
    one, other = (install(tiny("opt"), "clipped", gamma=gamma) for gamma in (-0.05, -0.2))
    before = logits(one)
    assert (logits(other) - before).abs().max() > 1e-3
    assert torch.equal(logits(one), before)


def test_saved_and_loaded(tiny: Any, kind: str, variant: dict[str, Any], tmp_path: Path) -> None:
    model = put_in(tiny(kind), variant)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    loaded = load_pretrained(tmp_path, dtype=torch.float64)
    assert installed(loaded) == installed(model)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-10)


def test_records_say_what_matters_and_nothing_else(tiny: Any) -> None:
    plain = {"sink": "max", "implementation": "fused", "detach": False}
    assert AttentionSettings("max").record() == plain
    assert AttentionSettings("clipped", "plain", gamma=-0.1).record() == {
        "sink": "clipped", "implementation": "plain", "detach": False, "gamma": -0.1, "zeta": 1.0,
    }  # fmt: skip
    gate = {"gate": "per_token", "gate_opening": 0.5, "gate_pretrained": True}
    assert AttentionSettings("max", gate="per_token", gate_opening=0.5).record() == plain | gate
    for chosen in (AttentionSettings("clipped", "plain", gamma=-0.1), AttentionSettings("max", gate="per_token")):
        assert AttentionSettings.parse(chosen.record(), "here") == chosen


def test_missing_gates_are_said(tiny: Any, tmp_path: Path) -> None:
    install(tiny("opt"), "max").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"sink": "max"', '"sink": "max", "gate": "per_token"'))
    with pytest.raises(UserError, match=r"head_gate\.weight is not among the weights") as error:
        load_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    config.write_text(config.read_text().replace('"per_token"', '"per_head"'))
    with pytest.raises(UserError, match="sparq_attention: gate: unknown value 'per_head'"):
        load_pretrained(tmp_path)


def adapter(model: Any, **more: Any) -> Any:
    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **more))


def train_one_step(model: Any) -> None:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()(input_ids=ids(), labels=ids()).loss.backward()
    optimiser.step()
    model.eval()


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_gates_beside_an_adapter(tiny: Any, kind: str, trained: bool, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float64)
    model = adapter(install(base, "max", gate="per_token"), modules_to_save=["head_gate"] if trained else None)
    before = [made.weight.clone() for made in gates(model.get_base_model())]
    train_one_step(model)
    model.save_pretrained(tmp_path / "adapter")
    after = [made.weight for made in gates(model.get_base_model())]
    assert all(torch.equal(a, b) != trained for a, b in zip(before, after, strict=True))
    loaded = load_pretrained(tmp_path / "adapter", dtype=torch.float64)
    assert installed(loaded) == AttentionSettings("max", gate="per_token")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-10)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(loaded), rtol=0, atol=1e-10)
    merged.save_pretrained(tmp_path / "merged")
    again = load_pretrained(tmp_path / "merged", dtype=torch.float64)
    torch.testing.assert_close(logits(again), logits(loaded), rtol=0, atol=1e-10)


def test_adapter_over_a_base_that_was_trained_with_gates(tiny: Any, tmp_path: Path) -> None:
    put_in(tiny("opt"), VARIANTS["gated"]).save_pretrained(tmp_path / "base")
    model = adapter(load_pretrained(tmp_path / "base", dtype=torch.float64))
    train_one_step(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_pretrained(tmp_path / "adapter", dtype=torch.float64)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-10)


def test_what_was_learned_stays_where_the_gates_stay(tiny: Any) -> None:
    model = put_in(tiny("llama"), VARIANTS["gated max"])
    before = logits(model)
    install(model, "max", "plain", gate="per_token")
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-9)
    install(model, "max", gate="per_token", gate_opening=0.5)
    assert (logits(model) - before).abs().max() > 1e-3
    assert gates(model)[0].factor == 2
    assert all(made.bias.abs().max() < 1e-15 for made in gates(model))


def test_copies_and_pickles_have_gates_of_their_own(tiny: Any) -> None:
    model = put_in(tiny("gpt_neox"), VARIANTS["gated"])
    before = logits(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(logits(twin), before)
        install(twin, "none")
        assert all(not module._forward_pre_hooks for _, module in attention_modules(twin))
    assert torch.equal(logits(model), before)


# ---- refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sink": "clipped"}, "gamma: missing"),
        ({"sink": "clipped", "gamma": 0.1}, "gamma: 0.1 .expected a number of at most 0"),
        ({"sink": "clipped", "gamma": math.nan}, "gamma: nan"),
        ({"sink": "clipped", "gamma": -math.inf}, "gamma: -inf"),
        ({"sink": "clipped", "gamma": -0.1, "alpha": 12}, "alpha: 12 .expected either"),
        ({"sink": "clipped", "alpha": -12}, "gamma: 0.1875"),
        ({"sink": "clipped", "gamma": -0.1, "zeta": 0.9}, "zeta: 0.9"),
        ({"sink": "clipped", "gamma": -0.1, "implementation": "fused"}, "'clipped' has no fused form"),
        ({"sink": "clipped", "gamma": -0.1, "detach": True}, "nothing to detach"),
        ({"sink": "max", "gamma": -0.1}, "'max' sink is not clipped"),
        ({"sink": "none", "gate": "per_head"}, "gate: unknown value 'per_head', expected per_token or nothing"),
        ({"sink": "none", "gate": "per_token", "gate_opening": 1.0}, "gate_opening: 1.0"),
    ],
)
def test_impossible_choices(tiny: Any, arguments: dict, message: str) -> None:
    model = tiny("opt")
    before = model.config._attn_implementation
    with pytest.raises(UserError, match=message) as error:
        install(model, **arguments)
    assert "\n" not in str(error.value)
    assert model.config._attn_implementation == before


def test_heads_that_cannot_have_a_slice(tiny: Any) -> None:
    model = tiny("qwen3")
    model.config.num_attention_heads = 6
    with pytest.raises(UserError, match="hidden_size 32 cannot be cut into slices for 6 heads"):
        install(model, gate="per_token")


@pytest.mark.parametrize(
    ("arguments", "name"), [({"gate": "per_token"}, "head_gate"), ({"sink": "learned"}, "sink_logit")]
)
def test_refused_where_it_would_not_be_saved(tiny: Any, arguments: dict, name: str) -> None:
    model = adapter(tiny("llama"))
    before = logits(model)
    with pytest.raises(UserError, match=rf"{name}: would be trained but not saved .* modules_to_save=\['{name}'\]"):
        install(model, **arguments)
    assert torch.equal(logits(model), before)
    ready = adapter(install(tiny("llama"), **arguments), modules_to_save=[name])
    install(ready, **arguments, implementation="plain")
    if name == "head_gate":
        with pytest.raises(UserError, match="would be trained but not saved"):
            install(ready, gate="per_token", gate_opening=0.5)
