"""Table 11 of the paper (appendix H): how many parameters LoRA trains, counted on the real shapes.

A linear of [out, in] gets rank · (in + out) parameters, so shapes are enough: models are made on the meta device,
without weights. What is printed (9.4, 25.2 and 50.3 million) does not follow from what appendix E.1 says (rank 256 on
q, k, v, o *and* the MLP: 4.5 times as many). It follows exactly from half the rank on q, k, v, o alone, and section 4.2
has that rank, 128. The numbers alone cannot tell it from rank 256 on any two of the four, such as LoRA's own choice q
and v, or from rank 64, which is stated nowhere, on the MLP and three of them. The printed percentages are the printed
numbers over the sizes in the models' names ("350M"), not over their parameters (331 million).

The embeddings of the joint vocabulary, which are trained whole beside adapters, are in none of these counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, OPTConfig, PreTrainedConfig

from sparq.adaptation.lora import target_linears
from sparq.config import LORA_TARGETS, LoraConfig
from sparq.paper.printed import other_table

STATED = LoraConfig(rank=256, targets=LORA_TARGETS)
"""Rank and targets as appendix E.1 has them."""

FOUND = LoraConfig(rank=128, targets=("q", "k", "v", "o"))
"""Rank and targets that table 11 follows from."""

RANKS = (32, 64, 128, 256, 512)


def _opt(hidden_size: int, layers: int, heads: int, **shape: Any) -> OPTConfig:
    """Give a published shape of OPT; the MLP is four times as wide as the residual stream."""
    common = {"vocab_size": 50272, "max_position_embeddings": 2048, "ffn_dim": 4 * hidden_size}
    shape = {"word_embed_proj_dim": hidden_size, **common, **shape}
    return OPTConfig(hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=heads, **shape)


OPT = {
    "OPT-125m": _opt(768, 12, 12),
    "OPT-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "OPT-1.3b": _opt(2048, 24, 32),
}
"""The published shapes of the paper's models."""


@dataclasses.dataclass(frozen=True)
class Count:
    """What LoRA adds to a model.

    Attributes:
        adapters: parameters of the adapters.
        model: parameters of the model without them.
    """

    adapters: int
    model: int

    @property
    def percent(self) -> float:
        """Adapters in percent of the model."""
        return 100 * self.adapters / self.model


@dataclasses.dataclass(frozen=True)
class Compared:
    """A row of table 11 beside what is counted.

    Attributes:
        model: "OPT-125m", "OPT-350m" or "OPT-1.3b".
        printed: parameters of the adapters as printed, rounded to 0.1 million.
        printed_percent: as printed.
        stated: counted with rank and targets of appendix E.1.
        found: counted with rank 128 on q, k, v and o.
    """

    model: str
    printed: float
    printed_percent: float
    stated: Count
    found: Count

    @property
    def nominal_percent(self) -> float:
        """The printed number in percent of the size in the model's name: what is printed, up to rounding."""
        return 100 * self.printed / nominal_size(self.model)


def count_adapters(config: PreTrainedConfig, lora: LoraConfig) -> Count:
    """Count what LoRA trains in the linears of a model, and the model itself, without making its weights.

    Args:
        config: the model's shape.
        lora: rank and targets; nothing else of it counts.

    Raises:
        UserError: the architecture is not known.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    ends = tuple(f".{linear}" for linear in target_linears(model, lora))
    adapted = (module for name, module in model.named_modules() if name.endswith(ends))
    adapters = sum(lora.rank * sum(module.weight.shape) for module in adapted)
    return Count(adapters, sum(parameter.numel() for parameter in model.parameters()))


def table_11() -> list[Compared]:
    """Set what table 11 prints beside what is counted."""
    printed = {(row.model, row.metric): float(row.value) for row in other_table("11")}
    return [
        Compared(
            model,
            printed[model, "lora_parameters"],
            printed[model, "lora_percent_of_model"],
            count_adapters(config, STATED),
            count_adapters(config, FOUND),
        )
        for model, config in OPT.items()
    ]


def explanations() -> list[LoraConfig]:
    """Give every usual rank with every choice of targets that all three printed numbers follow from."""
    rows = other_table("11")
    printed = {row.model: row.value for row in rows if row.metric == "lora_parameters"}
    each = {
        (model, target): count_adapters(OPT[model], LoraConfig(rank=1, targets=(target,))).adapters
        for model, target in itertools.product(printed, LORA_TARGETS)
    }
    found = []
    for size in range(1, len(LORA_TARGETS) + 1):
        for targets, rank in itertools.product(itertools.combinations(LORA_TARGETS, size), RANKS):
            counts = {model: rank * sum(each[model, target] for target in targets) for model in printed}
            if all(abs(counts[model] - float(value)) <= _ROUNDING for model, value in printed.items()):
                found.append(LoraConfig(rank=rank, targets=targets))
    return found


_ROUNDING = 0.05e6  # numbers of parameters are printed to 0.1 million


def nominal_size(model: str) -> float:
    """Read the number of parameters that a model's name promises, such as 1.3e9 of "OPT-1.3b"."""
    match = re.fullmatch(r".*-([\d.]+)([mb])", model)
    assert match, model
    return float(match[1]) * {"m": 1e6, "b": 1e9}[match[2]]
