"""Installed in tiny models of every supported architecture, refused in others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPTNeoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
)

from sparq.attention import FUSED_SINKS, AttentionSettings, install, installed
from sparq.attention.install import attention_modules
from sparq.errors import UserError

PADDING = 1


def ids(batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 29, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, tokens: torch.Tensor, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, **more).logits


def eager_with_sink(sink: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Write an eager attention out, by the textbook, as an independent second implementation."""

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor,
        scaling: float, dropout: float = 0.0, **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        groups = query.shape[1] // key.shape[1]
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key.repeat_interleave(groups, 1)) * scaling + mask
        seen = mask > torch.finfo(mask.dtype).min
        extra = {
            "zero": torch.zeros_like(scores[..., :1]),
            "max": scores.amax(-1, keepdim=True),
            "mean": (scores * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True),
        }
        if sink == "learned":
            column = module.sink_logit.weight.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        else:
            column = extra.get(sink, torch.full_like(scores[..., :1], -torch.inf))
        weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
        return torch.einsum("bhqk,bhkd->bqhd", weights, value.repeat_interleave(groups, 1)), weights

    return attend


@contextmanager
def replaced_eager(model: Any, sink: str) -> Iterator[None]:
    """Put a hand-written attention in the place of the model's own eager function."""
    home = sys.modules[type(model).__module__]
    before = home.eager_attention_forward
    home.eager_attention_forward = eager_with_sink(sink)
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        home.eager_attention_forward = before


def randomise_sinks(model: Any) -> None:
    for seed, (_, module) in enumerate(attention_modules(model)):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            module.sink_logit.weight.normal_(generator=generator)


@pytest.mark.parametrize("implementation", ["fused", "plain"])
@pytest.mark.parametrize("sink", FUSED_SINKS)
def test_equals_a_manual_replacement(tiny: Any, kind: str, sink: str, implementation: str) -> None:
    model = tiny(kind)
    own = logits(model, ids())
    install(model, sink, implementation)
    if sink == "learned":
        randomise_sinks(model)
    given = logits(model, ids())
    with replaced_eager(model, sink):
        manual = logits(model, ids())
    torch.testing.assert_close(given, manual, rtol=0, atol=1e-9)
    difference = (given - own).abs().max()
    assert difference < 1e-9 if sink == "none" else difference > 1e-3


@pytest.mark.parametrize("sink", ["max", "mean", "learned"])
def test_cached_equals_uncached_greedy_generation(tiny: Any, kind: str, sink: str) -> None:
    model = install(tiny(kind), sink)
    prompt = ids(length=6)
    mask = torch.ones_like(prompt)
    mask[0, :2] = 0
    prompt[0, :2] = PADDING
    how = {"attention_mask": mask, "max_new_tokens": 7, "do_sample": False, "eos_token_id": None}
    cached = model.generate(prompt, use_cache=True, **how)
    assert torch.equal(cached, model.generate(prompt, use_cache=False, **how))
    assert len(set(cached[:, 6:].flatten().tolist())) > 1, "a constant continuation proves little"


@pytest.mark.parametrize("sink", ["max", "mean"])
def test_cache_in_parts_equals_the_whole(tiny: Any, kind: str, sink: str) -> None:
    model = install(tiny(kind), sink)
    tokens = ids(length=9)
    with torch.no_grad():
        first = model(input_ids=tokens[:, :4], use_cache=True)
        rest = model(input_ids=tokens[:, 4:], past_key_values=first.past_key_values)
    parts = torch.cat([first.logits, rest.logits], 1)
    torch.testing.assert_close(parts, logits(model, tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sink", FUSED_SINKS)
def test_static_cache(tiny: Any, sink: str) -> None:
    model = install(tiny("llama"), sink)
    tokens = ids(length=6)
    cache = StaticCache(config=model.config, max_cache_len=12)
    with torch.no_grad():
        first = model(input_ids=tokens[:, :5], past_key_values=cache)
        last = model(input_ids=tokens[:, 5:], past_key_values=cache)
    parts = torch.cat([first.logits, last.logits], 1)
    torch.testing.assert_close(parts, logits(model, tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("implementation", ["fused", "plain"])
@pytest.mark.parametrize("sink", FUSED_SINKS)
def test_left_padding_changes_nothing(tiny: Any, kind: str, sink: str, implementation: str) -> None:
    model = install(tiny(kind), sink, implementation)
    tokens = ids(batch=1, length=6)
    padded = torch.cat([torch.full((1, 3), PADDING), tokens], 1)
    mask = (torch.arange(9) >= 3).long()[None]
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    given = logits(model, padded, attention_mask=mask, position_ids=places)[:, 3:]
    torch.testing.assert_close(given, logits(model, tokens), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("sink", "implementation"), [(s, "fused") for s in FUSED_SINKS] + [("l1", "plain")])
def test_training_backward(tiny: Any, kind: str, sink: str, implementation: str) -> None:
    model = install(tiny(kind), sink, implementation).float().train()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    tokens = ids()
    loss = model(input_ids=tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    if sink == "learned":
        sinks = [module.sink_logit.weight for _, module in attention_modules(model)]
        assert len(sinks) == 2
        assert all(weight.grad.abs().min() > 0 for weight in sinks)


@pytest.mark.parametrize("sink", ["zero", "max", "mean", "learned"])
def test_fused_and_plain_train_alike(tiny: Any, sink: str) -> None:
    gradients = []
    for implementation in ("fused", "plain"):
        model = install(tiny("llama"), sink, implementation)
        model(input_ids=ids(), labels=ids()).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_bfloat16_autocast_with_normed_queries(tiny: Any) -> None:
    model = install(tiny("qwen3").float(), "max").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids(), labels=ids()).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_gradient_checkpointing_gives_the_same_gradients(tiny: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = install(tiny("llama"), "max").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=ids(), labels=ids()).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_dropout_of_probabilities_is_kept(tiny: Any) -> None:
    model = install(tiny("gpt2", attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0), "max")
    tokens = ids()
    assert torch.equal(logits(model, tokens), logits(model, tokens))
    model.train()
    assert (logits(model, tokens) - logits(model, tokens)).abs().max() > 1e-3


def test_output_attentions(tiny: Any) -> None:
    plain = install(tiny("llama"), "max", "plain")
    with torch.no_grad():
        shown = plain(input_ids=ids(), output_attentions=True).attentions
    assert [tuple(layer.shape) for layer in shown] == [(2, 4, 9, 9)] * 2
    assert all(layer.sum(-1).max() < 1 and layer.triu(1).abs().max() == 0 for layer in shown)
    fused = install(tiny("llama"), "max", "fused")
    with torch.no_grad():
        hidden = fused(input_ids=ids(), output_attentions=True).attentions
    assert not hidden or all(layer is None for layer in hidden)


def test_the_sink_can_be_changed(tiny: Any) -> None:
    model = tiny("opt")
    assert installed(model) is None
    before = logits(model, ids())
    install(model, "learned")
    randomise_sinks(model)
    learned = logits(model, ids())
    install(model, "learned", "plain")
    torch.testing.assert_close(logits(model, ids()), learned, rtol=0, atol=1e-10)
    install(model, "max", detach=True)
    assert installed(model) == AttentionSettings("max", "fused", detach=True)
    assert not any("sink_logit" in name for name in model.state_dict())
    install(model, "none")
    torch.testing.assert_close(logits(model, ids()), before, rtol=0, atol=1e-10)
    model.set_attn_implementation("sdpa")
    assert installed(model) is None, "the record alone is not the attention"


def test_models_of_one_configuration_stay_apart() -> None:
    shared = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    one, other = LlamaForCausalLM(shared).eval(), LlamaForCausalLM(shared).eval()
    before = logits(other, ids())
    install(one, "learned")
    assert installed(one) == AttentionSettings("learned")
    assert installed(other) is None
    assert torch.equal(logits(other, ids()), before)
    assert not hasattr(shared, "sparq_attention")


def test_learned_sink_is_in_the_state_dict(tiny: Any, kind: str) -> None:
    model = install(tiny(kind), "learned")
    sinks = {name: x.shape for name, x in model.state_dict().items() if name.endswith("sink_logit.weight")}
    assert list(sinks.values()) == [(4,), (4,)]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=20), "bloom"),
        (FalconConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20), "falcon"),
        (
            GPTNeoConfig(hidden_size=16, num_layers=1, num_heads=2, vocab_size=20, attention_types=[[["global"], 1]]),
            "gpt_neo",
        ),
    ],
)
def test_refused_elsewhere(config: Any, name: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    before = model.config._attn_implementation
    with pytest.raises(UserError, match=f"'{name}' cannot take") as error:
        install(model)
    assert "\n" not in str(error.value)
    assert model.config._attn_implementation == before
    assert not hasattr(model.config, "sparq_attention")


def test_refused_where_a_model_keeps_its_own_attention(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("opt")
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda _cls: False))
    with pytest.raises(UserError, match="kept its own attention"):
        install(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sink": "maximum"}, "sink: unknown value 'maximum'"),
        ({"sink": "max", "implementation": "flash"}, "implementation: unknown value 'flash'"),
        ({"sink": "l1", "implementation": "fused"}, "no fused form"),
        ({"sink": "zero", "detach": True}, "nothing to detach"),
    ],
)
def test_impossible_choices(tiny: Any, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        install(tiny("opt"), **arguments)
