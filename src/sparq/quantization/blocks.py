"""One table per architecture: what a transformer block is made of, in the order in which data flows.

Every quantisation algorithm and the outlier metrics read this table, so that none of them knows an architecture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

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
            has to be applied to the input instead.
    """

    linears: tuple[str, ...]
    norm: nn.Module | None


@dataclasses.dataclass(frozen=True)
class Block:
    """One block of one model, as the quantisation algorithms see it.

    Attributes:
        name: its name, from the model down.
        smoothed: the linears that read a norm (q, k, v; the MLP's inputs).
        attention_output: the name of the linear after the attention.
        mlp_output: the name of the linear that leaves the MLP.
        linears: the names of all its linears, in the order of data.
        values: the name of the linear that makes the values.
        states: for each linear that makes queries, keys or values, how its output is laid out: (groups, parts), the
            output being [groups, parts, width]; each part of a token is one vector.
    """

    name: str
    smoothed: tuple[Siblings, Siblings]
    attention_output: str
    mlp_output: str
    linears: tuple[str, ...]
    values: str
    states: dict[str, tuple[int, int]]


def architecture(model: PreTrainedModel) -> Architecture:
    """The row of the table for a model.

    Raises:
        UserError: the architecture is not in the table.
    """
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
    found = []
    try:
        layers: Any = model.get_submodule(row.layers)
    except AttributeError as error:
        raise UserError(
            f"{type(model).__name__}: has no {row.layers}; merge adapters and unwrap the causal language model"
        ) from error
    for index, layer in enumerate(layers):
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
                    Siblings(full(*row.states), _foldable(row, model.config, layer.get_submodule(row.attention_norm))),
                    Siblings(full(*row.mlp_inputs), _foldable(row, model.config, layer.get_submodule(row.mlp_norm))),
                ),
                attention_output=f"{name}.{row.attention_output}",
                mlp_output=f"{name}.{row.mlp_output}",
                linears=linears,
                values=f"{name}.{row.states[-1]}",
                states=dict.fromkeys(full(*row.states), parts),
            )
        )
    return found


def _foldable(row: Architecture, config: PreTrainedConfig, norm: Any) -> nn.Module | None:
    """The norm, if a scale may go into it: it feeds its half alone and has a weight."""
    return norm if row.pre_norm(config) and norm.weight is not None else None


def _require_plain(name: str, linear: nn.Module) -> None:
    # Exact types: the quantised linears of other libraries are subclasses of nn.Linear.
    if type(linear) not in {nn.Linear, Conv1D}:
        raise UserError(
            f"{name}: is a {type(linear).__name__}, not a plain linear; "
            "merge adapters and load in full precision before quantising"
        )
