"""Blocks that have been learnt, kept in a folder, so that a learning that was killed goes on where it was."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparq.artifacts import fingerprint
from sparq.attention.install import require_installed
from sparq.errors import UserError
from sparq.quantization.config import QuantizationConfig


class FinishedBlocks:
    """The folder of one learning: ``block-000.safetensors`` and so on, each of them whole or not there."""

    def __init__(self, folder: Path, model: nn.Module, config: QuantizationConfig, inputs: Sequence[Tensor]) -> None:
        """Name what the blocks are learnt from, before any of it is changed.

        Args:
            folder: made if it is not there.
            model: in full precision.
            config: how it is quantised.
            inputs: what the first block reads, for each step of the calibration.

        Raises:
            UserError: there are blocks of another model, attention, configuration or calibration.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._made_from = fingerprint(
            {
                "config": dataclasses.asdict(config),
                "attention": require_installed(model).record(),
                "weights": {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()},
                "calibration": [tensor.cpu().numpy() for tensor in inputs],
            }
        )
        for path in sorted(folder.glob("block-*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("made_from") != self._made_from:
                    raise UserError(
                        f"{path}: was learnt from other weights, settings, attention or calibration; "
                        "remove it or use another folder"
                    )

    def _path(self, index: int) -> Path:
        return self._folder / f"block-{index:03}.safetensors"

    def read(self, index: int) -> tuple[dict[str, Tensor], tuple[float, float]] | None:
        """Give the tensors of a block and its errors before and after; None if it is not finished."""
        path = self._path(index)
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            record = file.metadata()
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        return tensors, (float(record["before"]), float(record["after"]))

    def write(self, index: int, tensors: Mapping[str, Tensor], errors: tuple[float, float]) -> None:
        """Keep a block that is finished."""
        path = self._path(index)
        record = {"made_from": self._made_from, "before": repr(errors[0]), "after": repr(errors[1])}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        # q, k and v have one scale of their input, and a file holds no tensor twice.
        own = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        save_file(own, temporary, record)
        temporary.replace(path)
