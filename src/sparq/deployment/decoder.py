"""The graph of a decoder: Llama, Mistral, Qwen2 and OPT, from ids and the cache to logits and the longer cache.

========================== =============================================== ==========================================
name                       shape                                           what it is
========================== =============================================== ==========================================
input_ids                  int64 [batch, q_length]                         the new tokens
attention_mask             int64 [batch, k_length]                         1 on real tokens, cached ones included
position_ids               int64 [batch, q_length]
logits_to_keep             int64 [1]                                       logits of so many last tokens; 0 for all
past_key_values.N.key      float32 [batch, kv_heads, past, width]          cached keys of layer N; ``value`` likewise
logits                     float32 [batch, kept, vocabulary]               output
present.N.key              float32 [batch, kv_heads, k_length, width]      output; ``value`` likewise
========================== =============================================== ==========================================
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from sparq.attention.settings import AttentionSettings
from sparq.deployment.attention import Attention, Shape
from sparq.deployment.config import DeploymentConfig
from sparq.deployment.graph import Graph, values
from sparq.deployment.packing import Packed
from sparq.deployment.reading import Reader
from sparq.errors import UserError
from sparq.quantization.blocks import architecture

LOGITS, PAST, PRESENT = "logits", "past_key_values", "present"
_ACTIVATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name → domain, operator, attributes
    "relu": ("", "Relu", {}),
    "gelu": ("", "Gelu", {}),
    "gelu_new": ("", "Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("", "Gelu", {"approximate": "tanh"}),
    "silu": ("com.microsoft", "QuickGelu", {"alpha": 1.0}),  # x · sigmoid(α·x)
}
_END = int(np.iinfo(np.int64).max)


def head_shape(config: Any) -> Shape:
    """Heads of a model's attention, from its configuration."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(heads, getattr(config, "num_key_value_heads", None) or heads, width)


class Decoder:
    """Writes one model into a graph."""

    def __init__(
        self, graph: Graph, model: PreTrainedModel, config: DeploymentConfig, settings: AttentionSettings
    ) -> None:
        self._graph, self._model, self._level = graph, model, config.accuracy_level
        self._reader = Reader(model, config)
        self._kind: Any = model.config
        self._names = architecture(model)
        self._shape = head_shape(self._kind)
        self._rotary = self._kind.model_type != "opt"
        name = self._kind.hidden_act if self._rotary else self._kind.activation_function
        if name not in _ACTIVATIONS:
            raise UserError(f"deployment: activation {name!r} has no graph ({', '.join(_ACTIVATIONS)} have)")
        self._activation = _ACTIVATIONS[name]
        self._settings = settings

    def write(self) -> None:
        """Write all of it."""
        graph = self._graph
        ids = graph.input("input_ids", np.int64, ["batch", "q_length"])
        mask = graph.input("attention_mask", np.int64, ["batch", "k_length"])
        positions = graph.input("position_ids", np.int64, ["batch", "q_length"])
        kept = graph.input("logits_to_keep", np.int64, [1])
        # The parameter itself, which a tied output layer shares.
        weight: Any = self._model.get_parameter(f"{self._names.embeddings[0]}.weight")
        output: Any = self._model.get_output_embeddings()
        head = self._reader.output(output.weight)
        table = head if output.weight is weight else self._reader.table(weight, "the embeddings")
        x = self._embedded(table, ids, positions)
        self._attention = Attention(graph, ids, mask, self._shape, self._settings)
        if self._rotary:
            self._cosines, self._sines = self._rotation(positions)
        x = self._blocks(x)
        x = graph.op("Slice", x, graph.op("Neg", kept), graph.integers(_END), graph.integers(1))
        if not self._rotary:
            x = self._projected("project_out", x)
        bias = None if output.bias is None else values(output.bias)
        logits = graph.linear(x, head, bias, self._level)
        graph.output(logits, LOGITS, np.float32, ["batch", "kept", len(output.weight)])

    def _embedded(self, table: np.ndarray | Packed, ids: str, positions: str) -> str:
        x = self._graph.rows(table, ids)
        if self._rotary:
            return x
        # OPT's table of positions begins with rows for padding.
        module: Any = self._model.get_submodule(self._names.embeddings[1])
        places = self._reader.table(module.weight[module.offset :], "the embeddings of positions")
        return str(self._graph.op("Add", self._projected("project_in", x), self._graph.rows(places, positions)))

    def _projected(self, name: str, x: str) -> str:
        """Change the width between the embeddings and the blocks, where an OPT model does (OPT-350m)."""
        module = getattr(self._model.get_submodule("model.decoder"), name)
        return x if module is None else self._product(x, f"model.decoder.{name}")

    def _blocks(self, x: str) -> str:
        """All blocks: [batch, q_length, hidden] → the same, through the norm behind them if there is one."""
        names, model = self._names, self._model
        layers: Any = model.get_submodule(names.layers)
        prefixes = [f"{names.layers}.{index}." for index in range(len(layers))]
        norms: list[Any] = [
            model.get_submodule(prefix + norm) for prefix in prefixes for norm in (names.attention_norm, names.mlp_norm)
        ]
        pre_norm = names.pre_norm(self._kind)
        residual = x
        if pre_norm:
            parent, _, last = names.final_norm.rpartition(".")
            norms.append(getattr(model.get_submodule(parent), last, None))
            x = self._norm(norms.pop(0), x)
        for index, prefix in enumerate(prefixes):
            for half in (partial(self._attend, index), self._mlp):
                x, total = self._added(norms.pop(0), residual, half(prefix, x))
                residual = total if pre_norm else x
        return x

    def _attend(self, index: int, prefix: str, x: str) -> str:
        """The attention half of a block: [batch, q_length, hidden] → the same."""
        graph, shape, names = self._graph, self._shape, self._names
        module: Any = self._model.get_submodule(f"{prefix}self_attn")
        both = shape.heads + shape.kv_heads
        states = self._product(x, *(prefix + name for name in names.states))
        states = graph.op("Reshape", states, graph.integers(0, 0, both + shape.kv_heads, shape.width))
        states = graph.op("Transpose", states, perm=[0, 2, 1, 3])
        met, value = graph.op("Split", states, graph.integers(both, shape.kv_heads), axis=1, outputs=2)
        if self._rotary:
            met = graph.op("RotaryEmbedding", met, self._cosines, self._sines)
        query, key = graph.op("Split", met, graph.integers(shape.heads, shape.kv_heads), axis=1, outputs=2)
        y = self._attention(
            query,
            self._cached(index, "key", key),
            self._cached(index, "value", value),
            sink=values(module.sink_logit.weight) if self._settings.sink == "learned" else None,
            gates=self._attention.gates(x, module.head_gate) if self._settings.gated else None,
        )
        return self._product(y, prefix + names.attention_output)

    def _cached(self, index: int, name: str, new: str) -> str:
        """Put new keys or values behind the cached ones."""
        kept: list[int | str] = ["batch", self._shape.kv_heads]
        past = self._graph.input(f"{PAST}.{index}.{name}", np.float32, [*kept, "past", self._shape.width])
        whole = self._graph.op("Concat", past, new, axis=2)
        self._graph.output(whole, f"{PRESENT}.{index}.{name}", np.float32, [*kept, "k_length", self._shape.width])
        return str(whole)

    def _mlp(self, prefix: str, x: str) -> str:
        """The other half: [batch, q_length, hidden] → the same."""
        names = self._names.mlp_inputs
        domain, kind, attributes = self._activation
        entered = self._product(x, *(prefix + name for name in names))
        if len(names) == 1:
            active = self._graph.op(kind, entered, domain=domain, **attributes)
        else:
            gate, up = self._graph.op("Split", entered, axis=-1, num_outputs=2, outputs=2)
            active = self._graph.op("Mul", self._graph.op(kind, gate, domain=domain, **attributes), up)
        return self._product(active, prefix + self._names.mlp_output)

    def _product(self, x: str, *names: str) -> str:
        """Multiply by linears of the same input, all at once; their outputs lie behind each other."""
        read = self._reader.linear({name: self._model.get_submodule(name) for name in names})
        return self._graph.linear(x, read.weight, read.bias, self._level)

    def _rotation(self, positions: str) -> tuple[str, str]:
        """Cosines and sines of the positions, each [batch, q_length, width / 2]."""
        graph = self._graph
        rotary: Any = self._model.get_submodule("model.rotary_emb")
        places = graph.op("Unsqueeze", graph.op("Cast", positions, to=1), graph.integers(-1))
        angles = graph.op("Mul", places, graph.constant(values(rotary.inv_freq)))
        factor = graph.constant(np.array(rotary.attention_scaling, np.float32))
        cosines, sines = (graph.op("Mul", graph.op(kind, angles), factor) for kind in ("Cos", "Sin"))
        return cosines, sines

    def _norm(self, norm: Any, x: str) -> str:
        if not isinstance(norm, nn.LayerNorm):
            return str(
                self._graph.op(
                    "SimplifiedLayerNormalization",
                    x,
                    self._graph.constant(values(norm.weight)),
                    epsilon=norm.variance_epsilon,
                    axis=-1,
                    stash_type=1,
                )
            )
        return str(self._graph.op("LayerNormalization", x, *self._affine(norm), epsilon=norm.eps, axis=-1))

    def _added(self, norm: Any, residual: str, x: str) -> tuple[str, str]:
        """Add to the residual, and norm the sum: the norm and the sum."""
        if norm is None:
            total = self._graph.op("Add", residual, x)
            return total, total
        if isinstance(norm, nn.LayerNorm):
            kind, affine, epsilon = "SkipLayerNormalization", self._affine(norm), norm.eps
        else:
            kind, affine = "SkipSimplifiedLayerNormalization", [self._graph.constant(values(norm.weight))]
            epsilon = norm.variance_epsilon
        normed, _, _, total = self._graph.fused(kind, residual, x, *affine, epsilon=epsilon, outputs=4)
        return normed, total

    def _affine(self, norm: nn.LayerNorm) -> list[str]:
        """Weight and bias of a layer norm; a norm without them has ones and zeros."""
        width = norm.normalized_shape
        weight = torch.ones(width) if norm.weight is None else norm.weight
        bias = torch.zeros(width) if norm.bias is None else norm.bias
        return [self._graph.constant(values(weight)), self._graph.constant(values(bias))]
