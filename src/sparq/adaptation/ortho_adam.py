"""OrthoAdam: Adam in a random orthogonal basis of each parameter, where no channel is an axis of its steps.

Adam divides each element by a root mean square of its own, so its steps favour the axes that the channels happen to be.
Kaul et al. 2024 ("From Attention to Activation", arXiv 2410.17174, algorithm 1) hold this to be what makes outlier
channels: they turn each gradient by a fixed random orthogonal Q, let Adam take its step there, and turn the step back
by Qᵀ. A dense Q over the elements of a matrix would have the square of their number; here Q is the Kronecker product of
one fast transform for each dimension, random signs and a Hadamard matrix, and nothing of it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from sparq.adaptation.closure import evaluate
from sparq.quantization.hadamard import hadamard, random_signs


class OrthoAdam(Adam):
    """Adam whose moments live in a turned basis; its state is Adam's.

    Args:
        parameters: or groups of them. ``first_dimension`` of a group is the first one that is turned (0): the rows of
            an embedding are tokens and no channels, and with 1 each keeps its own.
        lr: learning rate.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: times the parameter it is added to the gradient, as in Adam.
        seed: of all transforms; it is saved with the groups, and they are made from it at every step.
        fused: see :class:`torch.optim.Adam`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        seed: int = 0,
        fused: bool | None = None,
    ) -> None:
        given: list[Any] = list(parameters)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        own = {"seed": seed, "first_dimension": 0}
        super().__init__([{**own, **group} for group in groups], lr, betas, eps, weight_decay, fused=fused)
        self.defaults |= own

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step: Adam's own, from zero and with turned gradients, is what the parameters move by, turned back."""
        loss = evaluate(closure)
        stepping = []
        for parameter, group, signs in self._turned():
            stepping.append((parameter, parameter.clone(), parameter.grad, group, signs))
            # Adam would take the decay of what stands there while it steps, and that is nothing.
            gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
            parameter.grad = turn(gradient, signs, group["first_dimension"])
            parameter.zero_()
        super().step()
        for parameter, before, gradient, group, signs in stepping:
            parameter.copy_(before + turn_back(parameter, signs, group["first_dimension"]))
            parameter.grad = gradient
        return loss

    def _turned(self) -> Iterable[tuple[Any, dict[str, Any], list[Tensor]]]:
        """Give what has a gradient, its group, and the signs of each dimension that is turned."""
        parameters = ((parameter, group) for group in self.param_groups for parameter in group["params"])
        for number, (parameter, group) in enumerate(parameters):
            if parameter.grad is not None:
                generator = torch.Generator().manual_seed(1_000_003 * group["seed"] + number)
                sizes = parameter.shape[group["first_dimension"] :]
                yield parameter, group, [random_signs(size, generator).to(parameter) for size in sizes]


def turn(x: Tensor, signs: list[Tensor], first: int = 0) -> Tensor:
    """Multiply by Q: every dimension from the first on is rotated.

    Args:
        x: any shape.
        signs: ±1 [size] for each dimension from the first on.
        first: the first dimension that is turned.
    """
    for dimension, sign in enumerate(signs, start=first):
        x = hadamard(x * _along(sign, x, dimension), dimension)
    return x


def turn_back(x: Tensor, signs: list[Tensor], first: int = 0) -> Tensor:
    """Multiply by Qᵀ, the inverse of :func:`turn`."""
    for dimension, sign in enumerate(signs, start=first):
        x = hadamard(x, dimension) * _along(sign, x, dimension)
    return x


def _along(sign: Tensor, x: Tensor, dimension: int) -> Tensor:
    return sign.view(-1, *[1] * (x.ndim - 1 - dimension))
