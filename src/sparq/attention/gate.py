"""Gated attention (Bondarenko et al. 2023, "Quantizable Transformers", section 4.2), conditional and per token.

Each head has one linear of its own, from its slice of the attention's input to a number; the sigmoid of that number
multiplies what the head gives, before the output projection. A head can so be closed for a token, whatever its
softmax does, which is why the gate goes with every sink.

transformers does not hand the attention's input to the attention function. A hook in front of the attention module
passes it on as one more keyword, which every supported architecture forwards to the function. So nothing is kept
between two calls: caches, padding and gradient checkpointing need no care, and no linear of the block is replaced,
which quantisation and adapters rely on.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

GATES = ("per_token",)
INPUT = "sparq_attention_input"
PRETRAINED_DEVIATION = 0.001  # of the weights in front of a pretrained model's gates


class HeadGate(nn.Module):
    """The gates of one attention module, one a head.

    With weights of zero a gate is π, or 1 in the form for pretrained models, where it is multiplied by 1/π. To train
    gates beside LoRA, name them to PEFT: ``LoraConfig(modules_to_save=["head_gate"])``.

    Attributes:
        weight: [heads, 1, width], the weight [1, width] of each head's linear. The axis in the middle keeps optimizers
            that treat a weight as one matrix (Muon) from mixing heads that have nothing to do with each other.
        bias: [heads], at first logit(π).
        factor: what the sigmoid is multiplied by, 1 or 1/π.
    """

    def __init__(
        self,
        heads: int,
        width: int,
        opening: float,
        *,
        pretrained: bool,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Draw the weights from a generator of their own: gates that nobody trained are the same wherever they are.

        Args:
            heads: number of query heads.
            width: width of a head's slice of the attention's input.
            opening: π, the share that an untrained gate lets through.
            pretrained: draw the weights from N(0, 0.001) and multiply the gate by 1/π, so that a pretrained model
                starts as what it was; otherwise they start as those of an ``nn.Linear`` do.
            seed: of the weights.
            dtype: of the parameters.
            device: of the parameters.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(heads, 1, width)
        if pretrained:
            weight.normal_(0, PRETRAINED_DEVIATION, generator=generator)
        else:
            bound = width**-0.5
            weight.uniform_(-bound, bound, generator=generator)
        bias = torch.full((heads,), math.log(opening / (1 - opening)), dtype=torch.float64)
        self.weight = nn.Parameter(weight.to(device, dtype))
        self.bias = nn.Parameter(bias.to(device, dtype))
        self.factor = 1 / opening if pretrained else 1.0

    def forward(self, states: Tensor) -> Tensor:
        """Give the gates [batch, length, heads] for the attention's input [batch, length, heads · width]."""
        heads, _, width = self.weight.shape
        slices = states.unflatten(-1, (heads, width))
        weight, bias = self.weight.to(states.device), self.bias.to(states.device)
        return torch.sigmoid(torch.einsum("blhw,hw->blh", slices, weight[:, 0]) + bias) * self.factor


def _pass_input_on(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Hand the attention's input to the attention function."""
    states = keywords["hidden_states"] if "hidden_states" in keywords else arguments[0]
    return arguments, {**keywords, INPUT: states}


def add_gate(attention: Any, gate: HeadGate) -> None:
    """Put gates into an attention module, as ``head_gate``; the attention function has to apply them."""
    attention.head_gate = gate
    attention.head_gate_hook = attention.register_forward_pre_hook(_pass_input_on, with_kwargs=True)


def remove_gate(attention: Any) -> None:
    """Take the gates of an attention module out again."""
    attention.head_gate_hook.remove()
    del attention.head_gate, attention.head_gate_hook
