"""The optimizers of an adaptation: Adam (the paper, E.1), AdamW, OrthoAdam, and Muon.

Muon (Jordan et al. 2024) steps along the nearest orthogonal matrix to the momentum of a weight matrix, so every
direction moves at one speed; Adam's per-element steps are among the suspects for outliers. It is meant for the
matrices between the embeddings and the output layer; these two, norms, biases, sink logits and gates go by AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from sparq.adaptation.closure import evaluate
from sparq.adaptation.muon import Muon
from sparq.adaptation.ortho_adam import OrthoAdam
from sparq.config import AdaptationConfig

Parameters = list[nn.Parameter]


def make_optimizer(model: Any, config: AdaptationConfig) -> Optimizer:
    """Make the optimizer of a training over the parameters that require a gradient.

    Args:
        model: a transformers model, perhaps with PEFT's adapters.
        config: kind, learning rate, weight decay (in Adam and OrthoAdam part of the gradient, in the others apart),
            beta2, and the seed of OrthoAdam's transforms.

    Where the decay is part of the gradient, embeddings and the output layer have none, and none under adapters, where
    words stay what they were. A word that no text holds has no other gradient, and Adam, which divides a gradient by
    its size, makes a whole step of the smallest decay: after a thousand steps at 1e-6 such words of SmolLM2-135M had a
    sixth of their length (results/by_hand.json, decay_of_words).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    adam: dict[str, Any] = {**rate, "betas": (0.9, config.beta2), "fused": True}
    part_of_gradient = config.optimizer in ("adam", "orthoadam")
    spared = _tables(model) if part_of_gradient or config.method != "full" else set()
    if config.optimizer == "muon":
        matrices, others = _parted(model, trained)
        parts: list[Optimizer] = [Muon(matrices, **rate)] if matrices else []
        return Together([*parts, AdamW(_groups(others, spared), **adam)] if others else parts)
    groups = _groups(trained, spared)
    if config.optimizer == "orthoadam":
        for group in groups:
            if id(group["params"][0]) in spared:
                group["first_dimension"] = 1
        return OrthoAdam(groups, seed=config.seed, **adam)
    return (Adam if config.optimizer == "adam" else AdamW)(groups, **adam)


def _groups(trained: Parameters, spared: set[int]) -> list[dict[str, Any]]:
    """Part parameters into those that do not decay and the others, empty groups left out."""
    tables = [parameter for parameter in trained if id(parameter) in spared]
    others = [parameter for parameter in trained if id(parameter) not in spared]
    groups: list[dict[str, Any]] = [{"params": tables, "weight_decay": 0.0}, {"params": others}]
    return [group for group in groups if group["params"]]


def _parted(model: Any, trained: Parameters) -> tuple[Parameters, Parameters]:
    """Part parameters into hidden matrices and all others."""
    tables = _tables(model)
    hidden = [parameter.ndim == 2 and id(parameter) not in tables for parameter in trained]
    parts: tuple[Parameters, Parameters] = ([], [])
    for parameter, inside in zip(trained, hidden, strict=True):
        parts[not inside].append(parameter)
    return parts


def _tables(model: Any) -> set[int]:
    """Find what has a row for each token or position: the embeddings and the output layer, by their ids."""
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    modules.append(model.get_output_embeddings())
    return {id(parameter) for module in modules for parameter in module.parameters()}


class Together(Optimizer):
    """Several optimizers as one; their parameter groups stand one after another, so that a schedule reaches all."""

    def __init__(self, parts: Iterable[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the groups be the parts' own, and the state theirs together."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with each."""
        loss = evaluate(closure)
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Give the states of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states of the parts, in order."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()
