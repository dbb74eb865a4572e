"""Outlier-free attention inside Hugging Face models, put in by name.

Every choice of sink, implementation and detachment is one name in the attention *and* the mask interface of
transformers; without the second a model would silently see the future. The choice is also written into the model's
configuration, from where ``restore.py`` puts it back.

Fused attention has no dropout of probabilities: while a model trains with one (GPT-2's ``attn_pdrop`` is 0.1 unless
set), its attention runs by the plain definition. It returns no probabilities either (``output_attentions`` gets None,
as from transformers' own sdpa); the plain implementation returns them.
"""

# ruff: noqa: SLF001 - transformers has no public name for the attention that a configuration asks for

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparq.attention import softmax
from sparq.attention.fused import fused_attention
from sparq.errors import UserError

IMPLEMENTATIONS = ("fused", "plain")
CONFIG_KEY = "sparq_attention"

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


@dataclasses.dataclass(frozen=True)
class AttentionSettings:
    """Which attention a model has.

    Attributes:
        sink: one of ``sparq.attention.SINKS``; "none" is the ordinary softmax through the same code.
        implementation: "fused" or "plain".
        detach: let no gradient pass through the row's maximum or mean (sinks max and mean).

    Raises:
        UserError: a value is unknown, or two do not go together.
    """

    sink: str = "max"
    implementation: str = "fused"
    detach: bool = False

    def __post_init__(self) -> None:
        if self.sink not in softmax.SINKS:
            raise UserError(f"sink: unknown value {self.sink!r}, expected one of {', '.join(softmax.SINKS)}")
        if self.implementation not in IMPLEMENTATIONS:
            expected = ", ".join(IMPLEMENTATIONS)
            raise UserError(f"implementation: unknown value {self.implementation!r}, expected one of {expected}")
        if self.implementation == "fused" and self.sink not in softmax.FUSED_SINKS:
            raise UserError(f"sink {self.sink!r} has no fused form: choose implementation='plain'")
        if self.detach and self.sink not in softmax.DETACHABLE_SINKS:
            raise UserError(f"detach: the {self.sink!r} sink has nothing to detach (only max and mean have)")

    @property
    def name(self) -> str:
        """The name in the attention and the mask interface."""
        return f"sparq_{self.sink}_{self.implementation}" + "_detached" * self.detach

    @classmethod
    def parse(cls, record: object, where: str) -> AttentionSettings:
        """Read what a configuration or an adapter folder says.

        Raises:
            UserError: naming where it stands.
        """
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected a mapping, got {record!r}")
        try:
            return cls(**record)
        except (TypeError, UserError) as error:
            raise UserError(f"{where}: {error}") from error


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


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    settings: AttentionSettings,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor | None]:
    """Attend the way transformers calls it.

    Args:
        module: the attention module; has ``is_causal``, and ``sink_logit`` for the learned sink.
        query: [batch, heads, q_length, head_dim].
        key: [batch, kv_heads, k_length, head_dim].
        value: [batch, kv_heads, k_length, head_dim].
        attention_mask: as ``sdpa_mask`` makes it, None where the mask is purely causal or nothing is hidden.
        settings: which attention.
        scaling: factor of the scores (OPT has scaled its queries already and gives 1; GPT-2's factor may depend on
            the layer).
        dropout: the share of probabilities dropped.

    Returns:
        Output [batch, q_length, heads, head_dim], and probabilities from the plain implementation.
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
    if settings.implementation == "plain" or dropout > 0:
        output, weights = softmax.attention(query, key, value, settings.sink, dropout=dropout, **arguments)
        shown = weights if settings.implementation == "plain" else None
        return output.transpose(1, 2).contiguous(), shown
    return fused_attention(query, key, value, settings.sink, **arguments).transpose(1, 2).contiguous(), None


def _register() -> None:
    """Make every valid choice known to transformers under its name."""
    for sink in softmax.SINKS:
        for implementation in IMPLEMENTATIONS if sink in softmax.FUSED_SINKS else ("plain",):
            for detach in (False, True) if sink in softmax.DETACHABLE_SINKS else (False,):
                settings = AttentionSettings(sink, implementation, detach)
                AttentionInterface.register(settings.name, functools.partial(_attend, settings=settings))
                AttentionMaskInterface.register(settings.name, sdpa_mask)


_register()


def base_model(model: Any) -> PreTrainedModel:
    """Give the Hugging Face model under a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def attention_modules(base: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Give the names and attention modules of a supported model, in the order of its layers."""
    wanted = ARCHITECTURES[base.config.model_type]
    return ((name, module) for name, module in base.named_modules() if type(module).__name__ == wanted)


def install(model: Any, sink: str = "max", implementation: str = "fused", *, detach: bool = False) -> Any:
    """Give a causal language model outlier-free attention, in place.

    Equation 3.2 of the paper and its family, see ``softmax.py``. The choice is recorded in the model's configuration
    and saved with it. A learned sink adds one parameter per head and layer; what was learned stays when it is
    installed again, and goes when another sink is.

    Args:
        model: a transformers causal LM of a supported architecture, or a PEFT model around one.
        sink: one of ``SINKS``; "none" puts the ordinary softmax back (through the same code, so that timings and
            tables compare like with like).
        implementation: "fused" or "plain".
        detach: let no gradient pass through the row's maximum or mean.

    Returns:
        The same model.

    Raises:
        UserError: the architecture cannot take it, or the choice is impossible.
    """
    settings = AttentionSettings(sink, implementation, detach)
    base = base_model(model)
    kind = getattr(getattr(base, "config", None), "model_type", type(base).__name__)
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UserError(f"model_type {kind!r} cannot take outlier-free attention (supported: {known})")
    base.set_attn_implementation(settings.name)
    if base.config._attn_implementation != settings.name:
        raise UserError(f"{type(base).__name__} kept its own attention ({base.config._attn_implementation})")
    for _, module in attention_modules(base):
        if sink != "learned" and hasattr(module, "sink_logit"):
            del module.sink_logit
        elif sink == "learned" and not hasattr(module, "sink_logit"):
            device = next(module.parameters()).device
            module.sink_logit = SinkLogit(base.config.num_attention_heads, base.dtype, device)
    setattr(base.config, CONFIG_KEY, dataclasses.asdict(settings))
    return model


def installed(model: Any) -> AttentionSettings | None:
    """Say which outlier-free attention a model computes with at this moment, or None for transformers' own."""
    config = base_model(model).config
    record = getattr(config, CONFIG_KEY, None)
    if record is None:
        return None
    settings = AttentionSettings.parse(record, CONFIG_KEY)
    return settings if config._attn_implementation == settings.name else None
