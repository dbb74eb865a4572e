"""Outlier-free attention in a graph: `sparq.attention.softmax` once more, of primitive operators.

Every variant is a softmax over the scores of a row and one more column, the sink logit σ, whose probability is dropped.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from sparq.attention.gate import HeadGate
from sparq.attention.settings import AttentionSettings
from sparq.deployment.graph import Graph, values

# Added to hidden scores. Finite, so that a row of padding, which may see nothing, does not become NaN.
HIDDEN = -1e30


@dataclasses.dataclass(frozen=True)
class Shape:
    """Heads of an attention: a query head h reads the key and value head h // (heads / kv_heads)."""

    heads: int
    kv_heads: int
    width: int


class Attention:
    """What all layers share: the mask, and the sinks that do not depend on scores."""

    def __init__(self, graph: Graph, ids: str, mask: str, shape: Shape, settings: AttentionSettings) -> None:
        """Begin.

        Args:
            graph: the graph.
            ids: int64 [batch, q_length].
            mask: int64 [batch, k_length], 1 on real tokens; its last q_length columns are those of ``ids``.
            shape: the heads.
            settings: which attention.
        """
        self._graph, self._shape, self._settings = graph, shape, settings
        seen = self._visible(ids, mask)
        nothing, hidden = (graph.constant(np.array(value, np.float32)) for value in (0, HIDDEN))
        self._hiding = graph.op("Where", seen, nothing, hidden)
        batch = graph.op("Shape", ids, end=1)
        length = graph.op("Shape", ids, start=1)
        self._column = graph.op("Concat", batch, graph.integers(shape.heads), length, graph.integers(1), axis=0)
        if settings.sink == "zero":
            self._zero = graph.op("Expand", nothing, self._column)
        if settings.sink == "mean":
            self._seen = graph.op("Cast", seen, to=1)
            count = graph.op("ReduceSum", self._seen, graph.integers(-1))
            self._count = graph.op("Max", count, graph.constant(np.array(1, np.float32)))

    def _visible(self, ids: str, mask: str) -> str:
        """Bool [batch, 1, q_length, k_length]: what is real and not later."""
        graph = self._graph
        zero, one = (graph.constant(np.array(value, np.int64)) for value in (0, 1))
        total = graph.op("Squeeze", graph.op("Shape", mask, start=1), graph.integers(0))
        length = graph.op("Squeeze", graph.op("Shape", ids, start=1), graph.integers(0))
        columns = graph.op("Range", zero, total, one)
        rows = graph.op("Range", graph.op("Sub", total, length), total, one)
        earlier = graph.op("LessOrEqual", columns, graph.op("Unsqueeze", rows, graph.integers(1)))
        real = graph.op("Unsqueeze", graph.op("Cast", mask, to=9), graph.integers(1, 2))
        return str(graph.op("And", earlier, real))

    def __call__(
        self, query: str, key: str, value: str, *, sink: np.ndarray | None = None, gates: str | None = None
    ) -> str:
        """Attend.

        Args:
            query: [batch, heads, q_length, width].
            key: [batch, kv_heads, k_length, width].
            value: [batch, kv_heads, k_length, width].
            sink: float32 [heads], the logits of the learned sink.
            gates: [batch, q_length, heads, 1], what the heads' outputs are multiplied by.

        Returns:
            [batch, q_length, heads · width].
        """
        graph, shape = self._graph, self._shape
        groups = shape.heads // shape.kv_heads
        if groups > 1:
            # Query heads that share a key lie behind each other: one product for all of them, and no key is repeated.
            query = graph.op("Reshape", query, graph.integers(0, shape.kv_heads, -1, shape.width))
        scores = graph.fused("FusedMatMul", query, key, transB=1, alpha=shape.width**-0.5)
        if groups > 1:
            scores = graph.op("Reshape", scores, self._by_head(scores))
        weights = self._probabilities(scores, sink)
        if groups > 1:
            weights = graph.op("Reshape", weights, self._by_group(weights))
        output = graph.op("MatMul", weights, value)
        if groups > 1:
            output = graph.op("Reshape", output, graph.integers(0, shape.heads, -1, shape.width))
        output = graph.op("Transpose", output, perm=[0, 2, 1, 3])
        if gates is not None:
            output = graph.op("Mul", output, gates)
        return str(graph.op("Reshape", output, graph.integers(0, 0, shape.heads * shape.width)))

    def gates(self, states: str, gate: HeadGate) -> str:
        """Gates [batch, q_length, heads, 1] of an attention's input [batch, q_length, heads · width]."""
        graph = self._graph
        heads, _, width = gate.weight.shape
        weight, bias, factor = gate.weight[:, 0], gate.bias[:, None], torch.tensor(gate.factor)
        slices = graph.op("Reshape", states, graph.integers(0, 0, heads, width))
        products = graph.op("ReduceSum", graph.op("Mul", slices, graph.constant(values(weight))), graph.integers(-1))
        opened = graph.op("Sigmoid", graph.op("Add", products, graph.constant(values(bias))))
        return str(graph.op("Mul", opened, graph.constant(values(factor))))

    def _by_head(self, scores: str) -> str:
        """[batch, kv_heads, groups · q_length, k_length] → [batch, heads, q_length, k_length]."""
        last = self._graph.op("Shape", scores, start=3)
        return str(self._graph.op("Concat", self._graph.integers(0, self._shape.heads, -1), last, axis=0))

    def _by_group(self, weights: str) -> str:
        last = self._graph.op("Shape", weights, start=3)
        return str(self._graph.op("Concat", self._graph.integers(0, self._shape.kv_heads, -1), last, axis=0))

    def _probabilities(self, scores: str, learned: np.ndarray | None) -> str:
        """[batch, heads, q_length, k_length] → the same."""
        graph, settings = self._graph, self._settings
        hidden = graph.op("Add", scores, self._hiding)
        if settings.sink == "none":
            return str(graph.op("Softmax", hidden))
        if settings.sink == "clipped":
            assert settings.gamma is not None
            stretch, shift, low, high = (
                graph.constant(np.array(value, np.float32))
                for value in (settings.zeta - settings.gamma, settings.gamma, 0, 1)
            )
            stretched = graph.op("Add", graph.op("Mul", graph.op("Softmax", hidden), stretch), shift)
            return str(graph.op("Clip", stretched, low, high))
        whole = graph.op("Softmax", graph.op("Concat", hidden, self._sink(scores, hidden, learned), axis=-1))
        return str(graph.op("Slice", whole, *(graph.integers(at) for at in (0, -1, -1))))

    def _sink(self, scores: str, hidden: str, learned: np.ndarray | None) -> str:
        """σ of every row, [batch, heads, q_length, 1]."""
        graph = self._graph
        if self._settings.sink == "zero":
            return self._zero
        if self._settings.sink == "learned":
            assert learned is not None
            return str(graph.op("Expand", graph.constant(learned.reshape(-1, 1, 1)), self._column))
        if self._settings.sink == "max":
            return str(graph.op("ReduceMax", hidden, graph.integers(-1)))
        total = graph.op("ReduceSum", graph.op("Mul", scores, self._seen), graph.integers(-1))
        return str(graph.op("Div", total, self._count))
