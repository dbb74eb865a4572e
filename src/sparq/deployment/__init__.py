"""Deployed language models: really smaller and faster, where quantisation elsewhere is simulated.

There are two doors. `deploy` writes a model as a graph for ONNX Runtime, its weights in 4 or 8 bits or as they are;
`quantize_in_torch` leaves a torch model, whose weights are codes of 4 or 8 bits.
"""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import PreTrainedModel

from sparq.deployment.config import RECORD, DeploymentConfig
from sparq.deployment.decoder import Decoder
from sparq.deployment.graph import Graph
from sparq.deployment.in_torch import quantize_in_torch
from sparq.deployment.reading import require_deployable
from sparq.deployment.runtime import DeployedModel

__all__ = ["DeployedModel", "DeploymentConfig", "deploy", "quantize_in_torch"]


def deploy(model: PreTrainedModel, config: DeploymentConfig, folder: Path) -> DeployedModel:
    """Write a language model as a graph, and open it.

    Args:
        model: a causal LM of the Llama, Mistral, Qwen2 or OPT kind, with any attention but l1, adapters merged. Weights
            that simulated quantisation has rounded to so few bits are taken over as they are.
        config: the widths.
        folder: an existing folder, into which ``config.json``, ``model.onnx`` and ``model.onnx.data`` go.

    Raises:
        UserError: the model cannot be deployed, or not in such a width or by this engine; the message says why.
    """
    config.require("onnx")
    settings = require_deployable(model)
    with Graph(folder) as graph:
        Decoder(graph, model, config, settings).write()
    told = copy.deepcopy(model.config)
    if hasattr(told, "quantization_config"):
        del told.quantization_config
    setattr(told, RECORD, config.record())
    told.save_pretrained(folder)
    return DeployedModel(folder)
