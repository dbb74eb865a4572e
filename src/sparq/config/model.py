"""The language model, and the attention that goes into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparq.errors import UserError
from sparq.schema import key

SINKS = ("none", "zero", "max", "mean", "l1", "learned", "clipped", "gated")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The language model that is adapted.

    Attributes:
        name: pretrained weights, where ``{sink}`` stands for the attention variant; null starts from nothing with
            the shape that the other keys give.
        architecture: "llama" (rotary positions, RMS norms) or "opt" (learned positions, layer norms).
        hidden_size: width of the residual stream.
        layers: number of transformer blocks.
        heads: attention heads; they divide ``hidden_size``.
        intermediate_size: width inside the MLP.
        max_positions: longest sequence, in pieces.
        dropout: of attention and, where the architecture has it, of the residual stream.
    """

    name: str | None = None
    architecture: str = key("llama", choices=("llama", "opt"))
    hidden_size: int = key(256, minimum=8)
    layers: int = key(5, minimum=1)
    heads: int = key(4, minimum=1)
    intermediate_size: int = key(704, minimum=8)
    max_positions: int = key(1024, minimum=16)
    dropout: float = key(0.1, minimum=0, maximum=0.9)

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise UserError(f"heads: {self.heads} (expected a divisor of hidden_size, which is {self.hidden_size})")

    def weights(self, sink: str) -> str | None:
        """Name the pretrained weights of one attention variant; None when it starts from nothing."""
        return None if self.name is None else self.name.replace("{sink}", sink)


@dataclass(frozen=True, kw_only=True)
class ClippingConfig:
    """The clipped softmax, clip((ζ − γ)·softmax + γ, 0, 1) (Bondarenko et al. 2023; paper, G.1).

    Attributes:
        gamma: γ; null takes −alpha / the longest sequence that the model has positions for.
        alpha: sets γ where ``gamma`` is null.
        zeta: ζ.
    """

    gamma: float | None = key(None, maximum=0)
    alpha: float = key(12.0, minimum=0)
    zeta: float = key(1.0, minimum=1)


@dataclass(frozen=True, kw_only=True)
class GatingConfig:
    """Gated attention, a gate for every head and token (Bondarenko et al. 2023; paper, G.1).

    Attributes:
        opening: π, the share that an untrained gate lets through.
        pretrained: whether gates are multiplied by 1/π, so that a pretrained model starts as what it was; false is
            for a model from nothing.
    """

    opening: float = key(0.25, above=0, maximum=0.99)
    pretrained: bool = True


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The attention variants that are compared; each is adapted, quantised and evaluated.

    Attributes:
        sinks: "none" (vanilla), "zero" (softmax_1), "max" (the paper's max-shift), "mean" and "l1" (the paper's other
            stabilisers), "learned"; and the paper's baselines "clipped" (clipped softmax) and "gated" (vanilla with
            gates).
        implementation: "fused" kernels or the "plain" definitions; clipped softmax and l1 are always plain.
        detach: leave the sink's own gradient out.
        clipping: of the variant "clipped".
        gating: of the variant "gated".
    """

    sinks: tuple[str, ...] = key(("none", "max", "zero"), choices=SINKS)
    implementation: str = key("fused", choices=("fused", "plain"))
    detach: bool = False
    clipping: ClippingConfig = ClippingConfig()
    gating: GatingConfig = GatingConfig()

    def __post_init__(self) -> None:
        if not self.sinks or len(set(self.sinks)) < len(self.sinks):
            raise UserError(f"sinks: {list(self.sinks)} (expected at least one, each once)")

    def arguments(self, sink: str) -> dict[str, Any]:
        """Give what :func:`sparq.attention.install` is called with for one of ``SINKS``."""
        if sink == "clipped":
            gamma, alpha = self.clipping.gamma, self.clipping.alpha
            chosen = {"alpha": alpha} if gamma is None else {"gamma": gamma}
            return {"sink": "clipped", "implementation": "plain", **chosen, "zeta": self.clipping.zeta}
        if sink == "gated":
            gate = {"gate_opening": self.gating.opening, "gate_pretrained": self.gating.pretrained}
            return {"sink": "none", "implementation": self.implementation, "gate": "per_token", **gate}
        if sink == "l1":
            return {"sink": "l1", "implementation": "plain"}
        detach = self.detach and sink in {"max", "mean"}
        return {"sink": sink, "implementation": self.implementation, "detach": detach}
