"""An ONNX graph as it is written: nodes in the order of data, weights in a file beside it.

Weights go straight to ``model.onnx.data`` and are mapped from there, so that a large model is never held a second time,
and two nodes may read the same bytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from sparq.deployment.packing import Packed
from sparq.errors import UserError

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
MICROSOFT = "com.microsoft"
_OPSETS = {"": 23, MICROSOFT: 1}
_IR_VERSION = 10
_ALIGNMENT = 64
_INLINE = 256  # bytes up to which a constant lies in the graph, where onnxruntime sees it as it infers shapes


def values(tensor: Tensor) -> np.ndarray:
    """Give what a tensor holds as float32."""
    return np.asarray(tensor.detach().float().cpu().numpy())


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise UserError("deployment: writes ONNX files; run: pip install 'sparq[deploy]'") from error
    return onnx


class Graph:
    """Collects nodes; a context that writes ``model.onnx`` at its end."""

    def __init__(self, folder: Path) -> None:
        self._onnx = _onnx()
        self._folder = folder
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._written: dict[int, tuple[weakref.ref[np.ndarray], int]] = {}
        self._count = 0

    def __enter__(self) -> Self:
        self._data = (self._folder / WEIGHTS).open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()
        if kind is None:
            helper = self._onnx.helper
            graph = helper.make_graph(self._nodes, "decoder", self._inputs, self._outputs, self._constants)
            opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
            model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="sparq")
            (self._folder / GRAPH).write_bytes(model.SerializeToString())

    def input(self, name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        """Declare an input of the graph."""
        self._inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: Any, shape: Sequence[int | str]) -> None:
        """Declare a value an output of the graph, under a name."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        self._outputs.append(self._value(name, dtype, shape))

    def _value(self, name: str, dtype: Any, shape: Sequence[int | str]) -> Any:
        helper = self._onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    def op(self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Add a node.

        Args:
            kind: its operator.
            inputs: names of values; "" leaves an optional one out.
            domain: whose operator it is.
            outputs: how many values it gives.
            attributes: of the operator.

        Returns:
            The name of its value, or names if it gives several.
        """
        names = [self._name(kind) for _ in range(outputs)]
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def fused(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node of onnxruntime's own operators."""
        return self.op(kind, *inputs, domain=MICROSOFT, outputs=outputs, **attributes)

    def constant(self, array: np.ndarray, shape: Sequence[int] | None = None) -> str:
        """Add a constant; the very same array is written once, in whatever shapes it is asked for."""
        array = np.ascontiguousarray(array)
        name = self._name("constant")
        if array.nbytes <= _INLINE:
            tensor = self._onnx.numpy_helper.from_array(array.reshape(shape or array.shape), name)
        else:
            tensor = self._external(array, shape or array.shape, name)
        self._constants.append(tensor)
        return name

    def integers(self, *values: int) -> str:
        """Add a constant int64 [number of values]."""
        return self.constant(np.array(values, np.int64))

    def _external(self, array: np.ndarray, shape: Sequence[int], name: str) -> Any:
        known, offset = self._written.get(id(array), (None, 0))
        if known is None or known() is not array:
            self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
            offset = self._data.tell()
            self._written[id(array)] = weakref.ref(array), offset
            self._data.write(array.data)
        tensor = self._onnx.TensorProto(
            name=name,
            dims=shape,
            data_type=self._onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=self._onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", WEIGHTS), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"

    # Products and sums that every architecture needs.

    def linear(self, x: str, weight: np.ndarray | Packed, bias: np.ndarray | None, accuracy_level: int) -> str:
        """Multiply: x [..., in] · weightᵀ + bias → [..., out].

        Args:
            x: the input.
            weight: float32 [out, in], or packed.
            bias: [out] or None.
            accuracy_level: see `DeploymentConfig`.
        """
        if not isinstance(weight, Packed):
            y = self.fused("FusedMatMul", x, self.constant(weight), transB=1)
            return y if bias is None else self.op("Add", y, self.constant(bias))
        rows, columns = weight.shape
        shape = [rows, columns // weight.block, weight.block * weight.bits // 8]
        return self.fused(
            "MatMulNBits",
            x,
            *self._packed_constants(weight, shape),
            *([] if bias is None else ["", self.constant(bias)]),
            K=columns,
            N=rows,
            bits=weight.bits,
            block_size=weight.block,
            accuracy_level=accuracy_level,
        )

    def rows(self, weight: np.ndarray | Packed, ids: str) -> str:
        """Rows of a table [rows, width]: ids [...] → [..., width]."""
        if not isinstance(weight, Packed):
            return self.op("Gather", self.constant(weight), ids)
        rows, columns = weight.shape
        data, steps, zero_points = self._packed_constants(weight, [rows, columns * weight.bits // 8])
        return self.fused(
            "GatherBlockQuantized",
            data,
            ids,
            steps,
            zero_points,
            gather_axis=0,
            quantize_axis=1,
            block_size=weight.block,
            bits=weight.bits,
        )

    def _packed_constants(self, weight: Packed, shape: Sequence[int]) -> list[str]:
        return [
            self.constant(weight.code_bytes, shape),
            self.constant(weight.steps),
            self.constant(weight.zero_point_bytes),
        ]
