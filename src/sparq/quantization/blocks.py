"""One table per architecture: what a transformer block is made of, in the order in which data flows.

Every quantisation algorithm and the outlier metrics read this table, so that none of them knows an architecture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sparq.attention import installed
from sparq.attention.install import CONFIG_KEY
from sparq.attention.settings import AttentionSettings
from sparq.errors import UserError


def _always(_config: PreTrainedConfig) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Names of the modules of one kind of model; those of a block are relative to it.

    Attributes:
        layers: the list of blocks, from the model down.
        embeddings: the embeddings whose sum enters the first block, from the model down.
        final_norm: the norm after the last block, from the model down.
        attention_norm: the norm of the attention half: before it, or after it in a post-norm model.
        states: linears that make queries, keys and values.
        attention_output: the linear after the attention.
        mlp_norm: the norm of the MLP half.
        mlp_inputs: the linears that enter the MLP.
        mlp_output: the linear that leaves it.
        packing: how ``states`` lays out its outputs: "separate" linears for q, k and v; one linear with q, k and v
            as consecutive "thirds"; one linear with q, k and v of each of the "heads" in turn.
        pre_norm: whether a norm feeds its half alone. In a post-norm block its output is the residual as well, so a
            scale folded into the norm would change the model.
        direct_scores: whether queries and keys meet as the linears made them. A rotary embedding or a norm in between
            does not commute with a change of their channels.
    """

    layers: str
    embeddings: tuple[str, ...]
    final_norm: str
    attention_norm: str
    states: tuple[str, ...]
    attention_output: str
    mlp_norm: str
    mlp_inputs: tuple[str, ...]
    mlp_output: str
    packing: Literal["separate", "thirds", "heads"] = "separate"
    pre_norm: Callable[[PreTrainedConfig], bool] = _always
    direct_scores: bool = False


_LLAMA = Architecture(
    layers="model.layers",
    embeddings=("model.embed_tokens",),
    final_norm="model.norm",
    attention_norm="input_layernorm",
    states=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    mlp_inputs=("mlp.gate_proj", "mlp.up_proj"),
    mlp_output="mlp.down_proj",
)

ARCHITECTURES = {
    # OPT-350m is the post-norm one (do_layer_norm_before=False), and has no final norm.
    "opt": Architecture(
        layers="model.decoder.layers",
        embeddings=("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        final_norm="model.decoder.final_layer_norm",
        attention_norm="self_attn_layer_norm",
        states=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_output="self_attn.out_proj",
        mlp_norm="final_layer_norm",
        mlp_inputs=("fc1",),
        mlp_output="fc2",
        pre_norm=lambda config: bool(config.do_layer_norm_before),
        direct_scores=True,
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    "gpt2": Architecture(
        layers="transformer.h",
        embeddings=("transformer.wte", "transformer.wpe"),
        final_norm="transformer.ln_f",
        attention_norm="ln_1",
        states=("attn.c_attn",),
        attention_output="attn.c_proj",
        mlp_norm="ln_2",
        mlp_inputs=("mlp.c_fc",),
        mlp_output="mlp.c_proj",
        packing="thirds",
        direct_scores=True,
    ),
    "gpt_neox": Architecture(
        layers="gpt_neox.layers",
        embeddings=("gpt_neox.embed_in",),
        final_norm="gpt_neox.final_layer_norm",
        attention_norm="input_layernorm",
        states=("attention.query_key_value",),
        attention_output="attention.dense",
        mlp_norm="post_attention_layernorm",
        mlp_inputs=("mlp.dense_h_to_4h",),
        mlp_output="mlp.dense_4h_to_h",
        packing="heads",
    ),
}


@dataclasses.dataclass(frozen=True)
class Siblings:
    """Linears that read the same input.

    Attributes:
        linears: their names, from the model down.
        norm: the norm that makes their input and nothing else, into which a scale may be folded; None where a scale
            has to be applied to the input instead (after a norm whose output is the residual, or goes to gates, too).
        norm_name: the name of that norm, from the model down; what it names is not used where ``norm`` is None.
        shiftable: whether a shift of the input has places to go: the biases of all the linears, and that of the norm
            if there is one.
    """

    linears: tuple[str, ...]
    norm: nn.Module | None
    norm_name: str
    shiftable: bool


@dataclasses.dataclass(frozen=True)
class Attention:
    """How queries, keys and values lie in the outputs of the linears that make them.

    Attributes:
        linears: names of the linears, from the model down: three, or one that makes all.
        output: the name of the linear after the attention.
        groups: in the output of one linear, how often q, k and v follow each other.
        width: channels of a head.
        query_heads: heads of the queries.
        heads: key and value heads; query head h reads the key and value head h // (query heads / heads).
        direct_scores: see `Architecture`.
        shiftable: whether a shift of the values can go through the attention: its probabilities sum to 1, and the
            linears before and after it have biases.
    """

    linears: tuple[str, ...]
    output: str
    groups: int
    width: int
    query_heads: int
    heads: int
    direct_scores: bool
    shiftable: bool

    def split(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Rows of the linears (in the order of ``linears``, each [out, ...]) → those of q, k, v [heads, width, ...].

        They are views: all heads lie in one group, or each in a group of its own.
        """
        if len(rows) == 1:
            return [part.flatten(0, 1) for part in rows[0].unflatten(0, (self.groups, 3, -1, self.width)).unbind(1)]
        return [one.unflatten(0, (-1, self.width)) for one in rows]

    def join(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Undo `split`."""
        rows = [one.flatten(0, 1) for one in states]
        if len(self.linears) == 1:
            return [torch.stack([one.unflatten(0, (self.groups, -1)) for one in rows], 1).flatten(0, 2)]
        return rows

    def by_linear(self, *states: Tensor) -> dict[str, Tensor]:
        """Tensors of q, k and v → [parts, ...] of what each linear makes, by its name."""
        if len(self.linears) == 1:
            return {self.linears[0]: torch.stack(states)}
        return {name: one[None] for name, one in zip(self.linears, states, strict=True)}

    def heads_of(self, name: str) -> int:
        """Heads in each part of what a linear makes; 0 if it makes no queries, keys or values."""
        if name not in self.linears:
            return 0
        return self.query_heads if name == self.linears[0] else self.heads

    def makes_scores(self, name: str) -> bool:
        """Whether queries or keys are among what a linear makes."""
        return name in self.linears[:2]


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of one model, as the quantisation algorithms see it.

    Attributes:
        name: its name, from the model down.
        smoothed: the linears that read a norm (q, k, v; the MLP's inputs).
        mlp_output: the name of the linear that leaves the MLP.
        linears: the names of all its linears, in the order of data.
        states: for each linear that makes queries, keys or values, how its output is laid out: (groups, parts), the
            output being [groups, parts, width]; each part of a token is one vector.
        attention: the same, seen by heads.
    """

    name: str
    smoothed: tuple[Siblings, Siblings]
    mlp_output: str
    linears: tuple[str, ...]
    states: dict[str, tuple[int, int]]
    attention: Attention

    @property
    def readers(self) -> tuple[tuple[str, ...], ...]:
        """The same linears, those together that read the same input."""
        states, mlp_inputs = (siblings.linears for siblings in self.smoothed)
        return states, (self.attention.output,), mlp_inputs, (self.mlp_output,)


DEPLOYED = "sparq_deployment"  # as ``deployment/``, a higher room, marks the configurations of its models


def architecture(model: PreTrainedModel) -> Architecture:
    """The row of the table for a model.

    Raises:
        UserError: the architecture is not in the table, or the model is deployed and has no modules any more.
    """
    if getattr(model.config, DEPLOYED, None) is not None:
        raise UserError(
            f"{model.name_or_path or type(model).__name__}: is deployed; this needs the model that it was made from"
        )
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        raise UserError(f"model_type: {kind!r} has no block table, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[kind]


def blocks(model: PreTrainedModel) -> list[Block]:
    """The blocks of a model, from the first to the last.

    Raises:
        UserError: the architecture is not in the table, or a linear has been replaced by something else (an adapter
            that was not merged, another quantisation).
    """
    row = architecture(model)
    parts = {"separate": (1, 1), "thirds": (1, 3), "heads": (model.config.num_attention_heads, 3)}[row.packing]
    gated = _gated(model.config)
    found = []
    try:
        layers: Any = model.get_submodule(row.layers)
    except AttributeError as error:
        raise UserError(
            f"{type(model).__name__}: has no {row.layers}; merge adapters and unwrap the causal language model"
        ) from error
    for index in range(len(layers)):
        name = f"{row.layers}.{index}"

        def full(*names: str, name: str = name) -> tuple[str, ...]:
            return tuple(f"{name}.{one}" for one in names)

        linears = full(*row.states, row.attention_output, *row.mlp_inputs, row.mlp_output)
        for linear in linears:
            _require_plain(linear, model.get_submodule(linear))
        found.append(
            Block(
                name=name,
                smoothed=(
                    _siblings(model, row, full(*row.states), f"{name}.{row.attention_norm}", shared=gated),
                    _siblings(model, row, full(*row.mlp_inputs), f"{name}.{row.mlp_norm}"),
                ),
                mlp_output=f"{name}.{row.mlp_output}",
                linears=linears,
                states=dict.fromkeys(full(*row.states), parts),
                attention=_attention(model, row, full(*row.states), f"{name}.{row.attention_output}"),
            )
        )
    return found


def matrix(linear: Any) -> Tensor:
    """View the weight of a linear as [out, in]; GPT-2's ``Conv1D`` holds it the other way round."""
    weight: Tensor = linear.weight
    return weight.T if isinstance(linear, Conv1D) else weight


def _siblings(
    model: PreTrainedModel, row: Architecture, linears: tuple[str, ...], name: str, *, shared: bool = False
) -> Siblings:
    norm = None if shared else _foldable(row, model.config, model.get_submodule(name))
    shiftable = all(_has_bias(model, linear) for linear in linears) and (norm is None or _has_bias(model, name))
    return Siblings(linears, norm, name, shiftable)


def _attention(model: PreTrainedModel, row: Architecture, linears: tuple[str, ...], output: str) -> Attention:
    query: Any = model.get_submodule(linears[0])
    rows = query.nf if isinstance(query, Conv1D) else query.out_features
    query_heads = model.config.num_attention_heads
    attention = installed(model)
    # A sink, or a gate, takes its share of a shift along.
    whole = attention is None or attention.sums_to_one
    return Attention(
        linears=linears,
        output=output,
        groups=query_heads if row.packing == "heads" else 1,
        width=rows // query_heads // (1 if len(linears) == 3 else 3),
        query_heads=query_heads,
        heads=getattr(model.config, "num_key_value_heads", None) or query_heads,
        direct_scores=row.direct_scores,
        shiftable=whole and _has_bias(model, linears[-1]) and _has_bias(model, output),
    )


def _has_bias(model: PreTrainedModel, name: str) -> bool:
    return getattr(model.get_submodule(name), "bias", None) is not None


def _foldable(row: Architecture, config: PreTrainedConfig, norm: Any) -> nn.Module | None:
    """The norm, if a scale may go into it: it feeds its half alone and has a weight."""
    return norm if row.pre_norm(config) and norm.weight is not None else None


def _gated(config: PreTrainedConfig) -> bool:
    """Whether the attention norm feeds gates too; the gates come after the weights when a model is read."""
    record = getattr(config, CONFIG_KEY, None)
    return record is not None and AttentionSettings.parse(record, CONFIG_KEY).gated


def _require_plain(name: str, linear: nn.Module) -> None:
    # Exact types: the quantised linears of other libraries are subclasses of nn.Linear.
    if type(linear) not in {nn.Linear, Conv1D}:
        raise UserError(
            f"{name}: is a {type(linear).__name__}, not a plain linear; "
            "merge adapters and load in full precision before quantising"
        )
