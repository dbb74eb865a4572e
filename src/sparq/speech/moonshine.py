"""The Moonshine encoder as a float32 ONNX graph whose every layer can be read.

The packaged file is in onnxruntime's own format and computes with 8-bit activations whose range is taken over the whole
batch, so that an utterance's features depend on its neighbours in the batch. Here its weights are taken out and put
into a graph of our own (Jeffries et al. 2024, "Moonshine: Speech Recognition for Live Transcription and Voice
Commands"), in float32, with onnxruntime's fused attention and fewer products in the largest convolution. That makes a
batch of equal lengths exact, units steadier under noise, and is 1.2 times as fast as the packaged graph with float32
products (AVX2).

Which layer is best was measured on 20 minutes of hibari's speech (270 sentences; k = 200; a third held out) by how much
of the phonemes' entropy the units tell (PNMI of Hsu et al. 2021, "HuBERT"), how much of the entropy of the place in the
clip (in steps of 2 s), how many merged units there are a frame, and by the edit distance of a sentence's merged units
between hibari and a human reader, over that between two sentences:

===== ===== ===== =============== ============
layer PNMI  place units per frame other reader
===== ===== ===== =============== ============
3     0.605 0.110 0.57            0.574
4     0.622 0.123 0.52            0.535
5     0.545 0.169 0.34            0.546
6     0.339 0.552 0.25            0.640
===== ===== ===== =============== ============

The last block writes positions for the decoder to find its way by, which makes the model's own output the worst choice.
Layers 4 and 5 are the best by these measures; 5 is the default, because its merged units are 1.5 times fewer, and a
language model pays for every one of them. The codebook that ships looks at layers 3 to 6 (phonetic units).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sparq.errors import UserError

LAYERS = 6
DEFAULT_LAYER = 5
DIMENSION = 288
HOP = 384
FIRST_FRAME = 895
"""Samples that the convolutions need for one frame; every further frame takes ``HOP`` more."""

_HEADS = 8
_ROTATED = 32  # of the 36 dimensions of a head; the others know no position
_EPSILON = 1e-5
_FUSED = "com.microsoft"  # the domain of onnxruntime's own operators
_OPSET, _IR = 20, 9


def one_thread() -> onnxruntime.SessionOptions:
    """Return session options for one quiet thread: processes, not threads, are how work is spread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def moonshine_session(path: Path, layers: Sequence[int]) -> onnxruntime.InferenceSession:
    """Open the encoder: from ``input_values`` ``[batch, samples]`` to ``[batch, frames, 288]`` for each layer.

    It takes what makes whole frames, ``FIRST_FRAME + n * HOP`` samples, and nothing else.

    Layer 0 is what the convolutions give, layers 1 to 5 are the residual stream after that many blocks, without a layer
    norm; layer 6 is after the last block and the final layer norm.

    Raises:
        UserError: the package onnx is missing, or the file is another version's.
    """
    try:
        model = _Graph(moonshine_weights(path)).encoder(layers)
    except KeyError as error:
        raise UserError(f"{path}: not the Moonshine encoder that is known here (it has no {error})") from error
    return onnxruntime.InferenceSession(model, one_thread(), providers=["CPUExecutionProvider"])


def moonshine_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of the packaged graph by their names there; 8-bit matrices ``[in, out]`` as float32."""
    try:
        import onnx
    except ImportError as error:
        raise UserError("moonshine-tiny: reading its layers needs a package; run: pip install onnx") from error
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "encoder.onnx"
        options = one_thread()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.optimized_model_filepath = str(exported)
        options.add_session_config_entry("session.save_model_format", "ONNX")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(exported).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DynamicQuantizeMatMul":  # inputs: A, B, scale and zero point of B, bias
            _, matrix, scale, zero = node.input[:4]
        elif node.op_type == "MatMulIntegerToFloat":  # inputs: A, B, their scales, their zero points, bias
            _, matrix, _, scale, _, zero = node.input[:6]
        else:
            continue
        q, s, z = (arrays[name].astype(np.float32) for name in (matrix, scale, zero))
        arrays[node.name.removesuffix("/MatMul_quant")] = (q - z) * s  # such as /layers.0/mlp/fc1
    return arrays


class _Graph:
    """An ONNX graph of the encoder, built node by node.

    Args:
        weights: by the names that they have in the packaged graph.
    """

    def __init__(self, weights: dict[str, NDArray[Any]]) -> None:
        self._weights = weights
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {"no bias": np.zeros(DIMENSION, np.float32)}

    def encoder(self, layers: Sequence[int]) -> bytes:
        """Build the graph that gives these layers, as a serialised model."""
        from onnx import TensorProto, helper, numpy_helper

        state = self._convolutions()
        states = [state]
        turn = self._rotation(state)
        for block in range(LAYERS):
            states.append(self._block(states[-1], turn, f"layers.{block}"))
        states[LAYERS] = self._norm(states[LAYERS], "layer_norm")
        given = helper.make_tensor_value_info("input_values", TensorProto.FLOAT, ["batch", "samples"])
        outputs = [helper.make_empty_tensor_value_info(states[layer]) for layer in layers]
        arrays = [numpy_helper.from_array(array, name) for name, array in self._constants.items()]
        graph = helper.make_graph(self._nodes, "moonshine", [given], outputs, arrays)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, 1)]
        serialised: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=_IR).SerializeToString()
        return serialised

    def _convolutions(self) -> str:
        """Waveforms to ``[batch, frames, 288]``; the group norm has one group, the whole clip."""
        waves = self._node("Unsqueeze", "input_values", self._constant("channel", [1]))
        state = self._node("Tanh", self._node("Conv", waves, self._weight("conv1.weight_add_tensor"), strides=[64]))
        flat = self._node("Reshape", state, self._constant("one group", [0, 1, -1]))
        unit = [self._constant("scale", np.ones(1, np.float32)), self._constant("shift", np.zeros(1, np.float32))]
        flat = self._node("InstanceNormalization", flat, *unit, epsilon=_EPSILON)
        state = self._node("Reshape", flat, self._node("Shape", state))
        state = self._node("Mul", state, self._weight("onnx::Mul_2080"))
        state = self._node("Add", state, self._weight("onnx::Add_2081"))
        even, odd = self._second_convolution(self._node("Transpose", state, perm=[0, 2, 1]))
        # Three taps at every second place: of outputs 2t, 2t + 1 and 2t + 2 of the second convolution.
        three = self._node("Concat", self._rows(even, 0, -1), odd, self._rows(even, 1), axis=2)
        self._constants["conv3"] = self._weights["conv3.weight_add_tensor"].T.reshape(-1, DIMENSION)
        return self._gelu(self._node("MatMul", three, "conv3"), "conv3.bias")

    def _second_convolution(self, state: str) -> tuple[str, str]:
        """Seven taps at every third place of ``[batch, 6n + 7, 288]``.

        Two neighbouring outputs are made together, of ten products of matrices instead of fourteen. Places 3t, 3t + 1
        and 3t + 2 each go into an ordinary convolution, of three, two and two taps, and two outputs of such a one need
        four, three and three products: of what goes into the first output, the second, both, and both with opposite
        signs (minimal filtering, Winograd 1980; Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural
        Networks").

        Returns:
            Outputs 0, 2 ... and 1, 3 ..., ``[batch, n + 1, 576]`` and ``[batch, n, 576]``, behind the activation.
        """
        taps = self._weights["conv2.weight_add_tensor"].T.astype(np.float64)
        matrices = {
            "first": [taps[0], taps[1], taps[2]],
            "second": [taps[6], taps[4], taps[5]],
            "both": [(taps[0] + taps[3] + taps[6]) / 2, taps[1] + taps[4], taps[2] + taps[5]],
            "opposite": [(taps[0] - taps[3] + taps[6]) / 2],
        }
        for name, parts in matrices.items():
            self._constants[f"conv2.{name}"] = np.concatenate(parts).astype(np.float32)
        # Places 6t, 6t + 1 and 2 together, 6t + 3, 6t + 4 and 5 together, 6t + 6.
        six = self._node("Reshape", self._rows(state, 0, -1), self._constant("six", [0, -1, 6 * DIMENSION]))
        lengths = self._constant("lengths", np.array([1, 2, 1, 2]) * DIMENSION)
        place0, places12, place3, places45 = self._nodes_of("Split", 4, six, lengths, axis=2)
        place6 = self._rows(state, 6, step=6)
        into = {
            "first": [self._node("Sub", place0, place6), self._node("Sub", places12, places45)],
            "second": [
                self._node("Sub", self._rows(place3, 1), self._rows(place3, 0, -1)),
                self._node("Sub", self._rows(places12, 1), self._rows(places45, 0, -1)),
            ],
            "both": [self._node("Add", place3, place6), places45],
            "opposite": [self._node("Sub", place6, place3)],
        }
        product = {
            name: self._node("MatMul", self._node("Concat", *parts, axis=2), f"conv2.{name}")
            for name, parts in into.items()
        }
        even = self._node("Add", product["first"], self._node("Add", product["both"], product["opposite"]))
        shared = self._rows(self._node("Sub", product["both"], product["opposite"]), 0, -1)
        odd = self._node("Add", product["second"], shared)
        return self._gelu(even, "conv2.bias"), self._gelu(odd, "conv2.bias")

    def _rotation(self, state: str) -> list[str]:
        """Positions, cosines and sines ``[frames, 16]`` of as many frames as there are."""
        frames = self._node("Squeeze", self._node("Shape", state, start=1, end=2))
        steps = [self._constant("0", 0), frames, self._constant("1", 1)]
        places = self._node("Cast", self._node("Range", *steps), to=1)
        column = self._node("Unsqueeze", places, self._constant("column", [1]))
        self._constants["frequencies"] = self._weights["onnx::Expand_202"].reshape(1, -1)
        angles = self._node("Mul", column, "frequencies")
        return [self._constant("first", [0]), self._node("Cos", angles), self._node("Sin", angles)]

    def _block(self, state: str, turn: Sequence[str], name: str) -> str:
        """One transformer block: attention, then a feed-forward network, each behind a norm and added."""
        parts = [self._matrix(name, f"self_attn/{part}_proj") for part in "qkv"]
        self._constants[f"{name}.qkv"] = np.concatenate(parts, axis=1)
        together = self._node("MatMul", self._norm(state, f"{name}.input_layernorm"), f"{name}.qkv")
        query, key, value = self._nodes_of("Split", 3, together, axis=-1, num_outputs=3)
        rotary = {"domain": _FUSED, "interleaved": 1, "num_heads": _HEADS, "rotary_embedding_dim": _ROTATED}
        query, key = (self._node("RotaryEmbedding", its, *turn, **rotary) for its in (query, key))
        heads = {"domain": _FUSED, "num_heads": _HEADS, "scale": (DIMENSION / _HEADS) ** -0.5}
        mixed = self._node("MultiHeadAttention", query, key, value, **heads)
        self._constants[f"{name}.o"] = self._matrix(name, "self_attn/o_proj")
        state = self._node("Add", self._node("MatMul", mixed, f"{name}.o"), state)
        hidden = self._norm(state, f"{name}.post_attention_layernorm")
        for part in ("fc1", "fc2"):
            self._constants[f"{name}.{part}"] = self._matrix(name, f"mlp/{part}")
            product = self._node("MatMul", hidden, f"{name}.{part}")
            bias = f"{name}.mlp.{part}.bias"
            hidden = self._gelu(product, bias) if part == "fc1" else self._node("Add", product, self._weight(bias))
        return self._node("Add", state, hidden)

    def _gelu(self, product: str, bias: str) -> str:
        return self._node("Gelu", self._node("Add", product, self._weight(bias)), domain=_FUSED)

    def _rows(self, state: str, start: int, stop: int | None = None, step: int = 1) -> str:
        """``state[:, start:stop:step]``."""
        limits = [start, np.iinfo(np.int64).max if stop is None else stop]
        return self._node("Slice", state, *(self._constant(f"[{at}]", [at]) for at in (*limits, 1, step)))

    def _norm(self, state: str, name: str) -> str:
        scale = self._weight(f"{name}.weight")
        return self._node("LayerNormalization", state, scale, "no bias", axis=-1, epsilon=_EPSILON)

    def _matrix(self, block: str, name: str) -> NDArray[Any]:
        return self._weights[f"/{block}/{name}"]

    def _weight(self, name: str) -> str:
        self._constants[name] = self._weights[name]
        return name

    def _constant(self, name: str, value: Any) -> str:
        self._constants[name] = np.asarray(value)
        return name

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        (output,) = self._nodes_of(kind, 1, *inputs, **attributes)
        return output

    def _nodes_of(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node, and give the names of its outputs."""
        from onnx import helper

        names = [f"{kind} {len(self._nodes)}.{number}" for number in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names
