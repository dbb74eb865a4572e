"""What tests of several methods do with the tiny models of `conftest.py`."""

from __future__ import annotations

import torch

from sparq.quantization.blocks import blocks, matrix

# The RMS norms and rotary tables of transformers compute in float32 whatever the model's type.
TOLERANCE = dict.fromkeys(("llama-grouped", "mistral", "qwen2", "qwen3"), 1e-5)


def logits(model, batch, *, train=False):
    torch.manual_seed(7)  # the same dropout in every model
    model.train(train)
    with torch.no_grad():
        return model(**batch).logits


def plant_outliers(model, factor):
    """Make a few channels of every norm large and shrink what reads them: the same function, harder activations."""
    with torch.no_grad():
        for block in blocks(model):
            for siblings in block.smoothed:
                for parameter in siblings.norm.parameters():
                    parameter[:2] *= factor
                for name in siblings.linears:
                    matrix(model.get_submodule(name))[:, :2] /= factor
