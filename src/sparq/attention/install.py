"""Outlier-free attention inside Hugging Face models, put in by name.

Every choice is one name in the attention *and* the mask interface of transformers; without the second a model would
silently see the future. The choice is also written into the model's configuration, from where ``restore.py`` puts it
back.

Fused attention has no dropout of probabilities: while a model trains with one (GPT-2's ``attn_pdrop`` is 0.1 unless
set), its attention runs by the plain definition. It returns no probabilities either (``output_attentions`` gets None,
as from transformers' own sdpa); the plain implementation returns them.
"""

# ruff: noqa: SLF001 - transformers has no public name for the attention that a configuration asks for

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparq.attention import softmax
from sparq.attention.fused import fused_attention
from sparq.attention.gate import INPUT, HeadGate, add_gate, remove_gate
from sparq.attention.settings import AttentionSettings
from sparq.errors import UserError

CONFIG_KEY = "sparq_attention"
SIMULATED = "sparq"  # as ``quantization/simulate.py``, a higher room, calls its models
# What an installed attention adds to an attention module: trained whole beside adapters, saved, and read back.
ADDED_MODULES = ("sink_logit", "head_gate")

# Model type → its attention module. Only these: other architectures hand their attention more than this file
# honours (soft caps, sinks of their own, position biases), or do not use the interface at all.
ARCHITECTURES = {
    "gpt2": "GPT2Attention",
    "gpt_neox": "GPTNeoXAttention",
    "llama": "LlamaAttention",
    "mistral": "MistralAttention",
    "opt": "OPTAttention",
    "qwen2": "Qwen2Attention",
    "qwen3": "Qwen3Attention",
}


class SinkLogit(nn.Module):
    """The learned sink of one attention module, one logit per head.

    It starts at zero, where it is softmax_1. To train it beside LoRA, name it to PEFT:
    ``LoraConfig(modules_to_save=["sink_logit"])``.
    """

    def __init__(self, heads: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, dtype=dtype, device=device))

    def forward(self, query: Tensor) -> Tensor:
        """Give the logits [heads] on the device of a query, an argument because PEFT's wrappers pass one on."""
        return self.weight.to(query.device)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    settings: AttentionSettings,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend the way transformers calls it.

    Args:
        module: the attention module; has ``is_causal``, ``sink_logit`` for the learned sink, ``head_gate`` for gates.
        query: [batch, heads, q_length, head_dim].
        key: [batch, kv_heads, k_length, head_dim].
        value: [batch, kv_heads, k_length, head_dim].
        attention_mask: as ``sdpa_mask`` makes it, None where the mask is purely causal or nothing is hidden.
        settings: which attention.
        scaling: factor of the scores (OPT has scaled its queries already and gives 1; GPT-2's factor may depend on
            the layer).
        dropout: the share of probabilities dropped.
        keywords: what else transformers passes on; for gates, the attention's input [batch, q_length, hidden_size].

    Returns:
        Output [batch, q_length, heads, head_dim], and probabilities from the plain implementation (gates multiply the
        output, not them).
    """
    q_length = query.shape[2]
    causal = attention_mask is None and q_length > 1 and getattr(module, "is_causal", True)
    if causal and key.shape[2] > q_length:
        # The first pass into a static cache: behind the queries' own keys there are only empty places.
        key, value = key[:, :, :q_length], value[:, :, :q_length]
    learned = module.sink_logit(query) if settings.sink == "learned" else None
    arguments: dict[str, Any] = {
        "mask": attention_mask,
        "causal": causal,
        "scale": scaling,
        "learned": learned,
        "detach": settings.detach,
    }
    shown = None
    if settings.implementation == "plain" or dropout > 0:
        if settings.sink == "clipped":
            arguments |= {"gamma": settings.gamma, "zeta": settings.zeta}
        output, weights = softmax.attention(query, key, value, settings.sink, dropout=dropout, **arguments)
        shown = weights if settings.implementation == "plain" else None
    else:
        output = fused_attention(query, key, value, settings.sink, **arguments)
    output = output.transpose(1, 2)
    if settings.gated:
        output = output * module.head_gate(keywords[INPUT])[..., None].to(output.dtype)
    return output.contiguous(), shown


def _register(settings: AttentionSettings) -> None:
    """Make a choice known to transformers under its name."""
    AttentionInterface.register(settings.name, functools.partial(attend, settings=settings))
    AttentionMaskInterface.register(settings.name, sdpa_mask)


def base_model(model: Any) -> PreTrainedModel:
    """Give the Hugging Face model under a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def supported_model(model: Any) -> PreTrainedModel:
    """Give the model that attention is installed into, out of the PEFT model around it.

    Raises:
        UserError: the architecture cannot take it.
    """
    base = base_model(model)
    kind = getattr(getattr(base, "config", None), "model_type", type(base).__name__)
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UserError(f"model_type {kind!r} cannot take outlier-free attention (supported: {known})")
    return base


def attention_modules(base: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Give the names and attention modules of a supported model, in the order of its layers."""
    wanted = ARCHITECTURES[base.config.model_type]
    return ((name, module) for name, module in base.named_modules() if type(module).__name__ == wanted)


def install(
    model: Any,
    sink: str = "max",
    implementation: str | None = None,
    *,
    detach: bool = False,
    gamma: float | None = None,
    alpha: float | None = None,
    zeta: float = 1.0,
    gate: str | None = None,
    gate_opening: float = 0.25,
    gate_pretrained: bool = True,
) -> Any:
    """Give a causal language model outlier-free attention, in place.

    Equation 3.2 of the paper and its family, see ``softmax.py``, and the two baselines of its table G.1. The choice is
    recorded in the model's configuration and saved with it. A learned sink adds one parameter per head and layer,
    gates a small linear; what was learned stays when the same is installed again, and goes when it is not.

    Args:
        model: a transformers causal LM of a supported architecture, or a PEFT model around one.
        sink: one of ``SINKS``; "none" puts the ordinary softmax back (through the same code, so that timings and
            tables compare like with like).
        implementation: "fused" or "plain"; None takes the fused form where the sink has one.
        detach: let no gradient pass through the row's maximum or mean.
        gamma: γ of the clipped softmax, at most 0 (Bondarenko et al. take −0.025 for BERT and −12/512 for OPT).
        alpha: in place of γ, which becomes −α / ``max_position_embeddings``: one γ for the model, as theirs. Were it
            the length of each row, short ones would be clipped away, and cached generation would change with its cache.
        zeta: ζ of the clipped softmax, at least 1.
        gate: "per_token" gates what the heads give, see ``gate.py``; goes with every sink.
        gate_opening: π, the share that an untrained gate lets through.
        gate_pretrained: gates for a pretrained model, which start close to 1; False is for one from nothing, where
            they start around π.

    Returns:
        The same model.

    Raises:
        UserError: the architecture cannot take it, the choice is impossible, or new parameters could not be saved
            (adapters are there already) or would not fit (a quantised model).
    """
    base = supported_model(model)
    if alpha is not None:
        gamma = _gamma(base, alpha, gamma)
    if implementation is None:
        implementation = "plain" if sink in softmax.SINKS and sink not in softmax.FUSED_SINKS else "fused"
    settings = AttentionSettings(sink, implementation, detach, gamma, zeta, gate, gate_opening, gate_pretrained)
    _check_additions(model, base, settings)
    own_configuration(model)
    _register(settings)
    base.set_attn_implementation(settings.name)
    if base.config._attn_implementation != settings.name:
        raise UserError(f"{type(base).__name__} kept its own attention ({base.config._attn_implementation})")
    keep_gates = _recorded(base).gate_settings == settings.gate_settings
    for index, (_, module) in enumerate(attention_modules(base)):
        if sink != "learned" and hasattr(module, "sink_logit"):
            del module.sink_logit
        elif sink == "learned" and not hasattr(module, "sink_logit"):
            module.sink_logit = SinkLogit(base.config.num_attention_heads, base.dtype, _device(module))
        if hasattr(module, "head_gate") and not keep_gates:
            remove_gate(module)
        if settings.gated and not hasattr(module, "head_gate"):
            add_gate(module, _new_gate(base, module, settings, index))
    setattr(base.config, CONFIG_KEY, settings.record())
    return model


def _gamma(base: PreTrainedModel, alpha: float, gamma: float | None) -> float:
    """Take γ = −α / T, where T is the longest sequence that the model has positions for."""
    if gamma is not None:
        raise UserError(f"alpha: {alpha!r} (expected either gamma or alpha, not both)")
    return -alpha / base.config.max_position_embeddings


def _recorded(base: PreTrainedModel) -> AttentionSettings:
    record = getattr(base.config, CONFIG_KEY, None)
    return AttentionSettings("none") if record is None else AttentionSettings.parse(record, CONFIG_KEY)


def _check_additions(model: Any, base: PreTrainedModel, settings: AttentionSettings) -> None:
    """Refuse sinks and gates that a model has no place for, before anything is changed."""
    heads, width = base.config.num_attention_heads, base.config.hidden_size
    if settings.gated and width % heads:
        raise UserError(f"gate: hidden_size {width} cannot be cut into slices for {heads} heads")
    before = _recorded(base)
    quantization: Any = getattr(base.config, "quantization_config", None)
    simulated = getattr(quantization, "quant_method", None) == SIMULATED
    if simulated and before.gated != settings.gated:
        # Where a norm feeds a gate, quantisation has left alone what it would have scaled otherwise.
        raise UserError(f"gate: {settings.gate!r} cannot be changed in a quantised model; install it before")
    if simulated and quantization.settings.shifts and before.sums_to_one != settings.sums_to_one:
        # Shifts of the values went through the probabilities, which summed to 1; with a sink they do not.
        raise UserError(f"sink: {settings.sink!r} cannot replace {before.sink!r} in a model that was quantised with it")
    wanted = {"sink_logit": settings.sink == "learned", "head_gate": settings.gated}
    kept = {"sink_logit": True, "head_gate": before.gate_settings == settings.gate_settings}
    there = {name for _, module in attention_modules(base) for name in ADDED_MODULES if hasattr(module, name)}
    new = [name for name in ADDED_MODULES if wanted[name] and not (name in there and kept[name])]
    if new and model is not base:
        raise UserError(
            f"{new[0]}: would be trained but not saved with the adapters; "
            f"install the attention first, then add adapters with modules_to_save={new}"
        )


def _new_gate(base: PreTrainedModel, module: nn.Module, settings: AttentionSettings, layer: int) -> HeadGate:
    heads = base.config.num_attention_heads
    return HeadGate(
        heads,
        base.config.hidden_size // heads,
        settings.gate_opening,
        pretrained=settings.gate_pretrained,
        seed=layer,
        dtype=base.dtype,
        device=_device(module),
    )


def _device(module: nn.Module) -> torch.device:
    # The linears of a deployed model have no parameters.
    return next(itertools.chain(module.parameters(), module.buffers())).device


def own_configuration(model: Any) -> None:
    """Give a model a configuration that no other model shares.

    Transformers copies none: of two models built from one object, what is recorded of the first would change what the
    second computes.
    """
    shared = base_model(model).config
    own = copy.deepcopy(shared)
    for module in model.modules():
        if vars(module).get("config") is shared:
            module.config = own


def installed(model: Any) -> AttentionSettings | None:
    """Say which outlier-free attention a model computes with at this moment, or None for transformers' own."""
    config = base_model(model).config
    record = getattr(config, CONFIG_KEY, None)
    if record is None:
        return None
    settings = AttentionSettings.parse(record, CONFIG_KEY)
    return settings if config._attn_implementation == settings.name else None


def require_installed(model: Any) -> AttentionSettings:
    """Say which attention a model computes with, the ordinary softmax included.

    Raises:
        UserError: its configuration records another one than it computes with.
    """
    settings = installed(model)
    if settings is None and getattr(base_model(model).config, CONFIG_KEY, None) is not None:
        raise UserError(f"{CONFIG_KEY}: is recorded but not installed (sparq.attention.load_pretrained does it)")
    return settings or AttentionSettings("none")
