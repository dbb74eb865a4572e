"""Real low-bit linears inside a torch model, by torchao: for a GPU, where a graph for ONNX Runtime has no place.

The model stays in its folder as it is and is quantised when it is loaded, which takes seconds. Not run on a GPU yet; on
a CPU the 8-bit kind runs, without being faster.
"""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from sparq.deployment.config import RECORD
from sparq.errors import UserError
from sparq.quantization.blocks import blocks

M = TypeVar("M", bound=PreTrainedModel)

GROUP = 128  # inputs that share a step in 4 bits


def quantize_in_memory(model: M, bits: int = 8) -> M:
    """Put the linears of all blocks into low bits, in place.

    Args:
        model: a causal LM in full precision, adapters merged, where it shall compute: 8 bits on a GPU or CPU, 4 bits on
            a GPU and in bfloat16.
        bits: 8 for weights and inputs of 8 bits (one scale for each output channel, and for each token as it comes); 4
            for weights alone, in groups of 128 inputs; a linear whose inputs they do not divide stays as it is.

    Returns:
        The same model. It can be used, and neither saved nor quantised again.

    Raises:
        UserError: torchao is missing, the model is quantised already or has adapters, or this width is not for where
            the model is.
    """
    if bits not in (4, 8):
        raise UserError(f"deployment.bits: {bits!r} is not one of 4, 8")
    if bits == 4 and (model.device.type != "cuda" or model.dtype != torch.bfloat16):
        raise UserError(f"deployment.bits: 4 needs a CUDA device and bfloat16, not {model.device} and {model.dtype}")
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(f"{type(model).__name__}: is quantised already")
    chosen = {
        name
        for block in blocks(model)
        for name in block.linears
        if bits == 8 or _inputs(model.get_submodule(name)) % GROUP == 0
    }
    torchao: Any = _torchao()
    if bits == 8:
        config = torchao.Int8DynamicActivationInt8WeightConfig()
    else:
        config = torchao.Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    torchao.quantize_(model, config, filter_fn=lambda _, name: name in chosen)
    setattr(model.config, RECORD, {"bits": bits, "activations": "int8" if bits == 8 else "bfloat16"})
    return model


def _inputs(linear: nn.Module) -> int:
    return int(getattr(linear, "in_features", 1))


def _torchao() -> Any:
    try:
        return importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise UserError("deployment: low bits in torch need torchao; run: pip install 'sparq[deploy]'") from error
