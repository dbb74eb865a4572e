"""Muon (Jordan et al. 2024), in the precision that the device multiplies fast.

The step of a matrix is its momentum made orthogonal by five iterations of Newton and Schulz. They bear bfloat16, which
GPUs are fast at; PyTorch's own Muon always takes it. A processor without bfloat16 arithmetic emulates it, and its step
then lasts several times as long as all else in a training (results/by_hand.json, muon_without_bfloat16). Here a
processor iterates in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparq.adaptation.closure import evaluate

_MOMENTUM = 0.95
_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at zero; singular values end between about 0.7 and 1.2
_SMALLEST_NORM = 1e-7
_RMS = 0.2  # of an element's step, as large as AdamW's (Liu et al. 2025, equation 4)


class Muon(Optimizer):
    """Steps of one size in every direction, for matrices alone.

    Args:
        matrices: parameters of two dimensions.
        lr: learning rate, on the scale of AdamW's ("Muon is Scalable for LLM Training", Liu et al. 2025).
        weight_decay: apart from the step, as in AdamW.

    Raises:
        ValueError: a parameter has not two dimensions.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.ndim != 2:
                    raise ValueError(f"Muon is for matrices, not for {list(matrix.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; matrices of one shape are made orthogonal together."""
        loss = evaluate(closure)
        for group in self.param_groups:
            alike: dict[object, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    update = self._momentum(matrix, matrix.grad)
                    alike[matrix.shape, matrix.device, matrix.dtype].append((matrix, update))
            for pairs in alike.values():
                size = group["lr"] * _RMS * max(pairs[0][0].shape) ** 0.5
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                for (matrix, _), update in zip(pairs, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)
        return loss

    def _momentum(self, matrix: nn.Parameter, gradient: Tensor) -> Tensor:
        """Mix a gradient into the momentum, and give Nesterov's look ahead."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Replace each matrix ``[count, rows, columns]`` by about the orthogonal one that is nearest to it."""
    dtype = torch.float32 if matrices.device.type == "cpu" else torch.bfloat16
    wide = matrices.to(dtype)
    tall = wide.shape[1] > wide.shape[2]
    if tall:
        wide = wide.mT
    wide = wide / wide.flatten(1).norm(dim=1).clamp(min=_SMALLEST_NORM)[:, None, None]
    first, third, fifth = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return (wide.mT if tall else wide).to(matrices.dtype)
