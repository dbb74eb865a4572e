"""Appendix C.1 of the paper: the norms that decide how fast LoRA can be trained (proposition C.1), measured on a model.

The proposition (after Hu et al. 2024, "Computational limits of LoRA", theorem 5.1): under the strong exponential time
hypothesis, for d = O(log L), no algorithm approximates the gradient of LoRA on W_Q and W_V up to ε = O((log L)⁻⁴) in
O(L^(2−δ)) time, even where ‖X·W_K‖_∞ ≤ Γ and ‖(α/r)·X·B_Q·A_Q‖_∞ ≤ Γ, with Γ a little above √(log L). The norm is the
largest magnitude of an entry; L is the length of the sequence.

What the statement has wrong, or leaves unsaid:

1. It says what is impossible. Proposition 3.2, called its informal version, says what is possible below the threshold,
   which does not follow from it: that is another theorem of Hu et al., about an algorithm that is not used here.
2. Γ = O(√(log L)·κ) allows any small Γ, 0 included, for which the claim is false; Ω must be meant. The constant is not
   given, so that √(ln L), which is shown here, is a scale and no sharp limit.
3. The scores also have X·W_Q (equation C.3 has W̄_Q beside B_Q·A_Q), which no condition bounds. It is measured too. A
   LoRA that has just begun meets the second condition with 0 whatever its model does.
4. d = O(log L) is about widths that grow with L. The models of the paper have one, 768 to 2048, for all L up to 2048,
   where ln L is 7.6.
5. Neither norm has anything to do with Softmax_1 or its stabilisation, which act on the scores after these products; if
   an outlier-free model is nearer to the threshold, it is so by what it learnt. Hence a measurement.

Slips besides: equation C.3 adds a matrix to a vector in D, and problem 1 exchanges the shapes of its two gradients.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparq.errors import UserError
from sparq.language.generation import GenerationOptions, generate
from sparq.language.tasks import TASKS, prompt
from sparq.language.vocabulary import Vocabulary
from sparq.quantization.blocks import architecture, blocks, matrix


@dataclasses.dataclass(frozen=True)
class LayerNorms:
    """The norms of one layer: largest magnitudes over all sequences, positions and heads.

    Attributes:
        layer: its name.
        keys: ‖X·W_K‖_∞.
        queries: ‖X·W_Q‖_∞, with the factor 1/√d_head of the scores, which definition C.1 does not have.
        adapters: ‖(α/r)·X·B_Q·A_Q‖_∞ with the same factor; None without a model to compare with.
    """

    layer: str
    keys: float
    queries: float
    adapters: float | None


def bound(length: int) -> float:
    """Give √(ln L), the scale of Γ in proposition C.1 for sequences of a length."""
    return math.sqrt(math.log(length))


def own_sequences(model: PreTrainedModel, vocabulary: Vocabulary, length: int, count: int, seed: int = 0) -> Tensor:
    """Let a model write sequences of text and of speech, without conditions, for its norms to be measured on.

    Returns:
        int64 [2·count, length].

    Raises:
        UserError: the model has not so many positions.
    """
    positions = int(model.config.max_position_embeddings)
    if length > positions:
        raise UserError(f"--length: {length} (expected at most {positions}, the positions of the model)")
    rows = []
    for task in (TASKS["textlm"], TASKS["speechlm"]):
        begun = prompt(task, vocabulary)
        room = length - len(begun)
        if room < 1:
            raise UserError(
                f"--length: {length} (expected more than the {len(begun)} pieces that a sequence begins with)"
            )
        options = GenerationOptions(method="sample", seed=seed, min_pieces=room, max_pieces=room)
        rows += [begun + more for more in generate(model, vocabulary, [begun] * count, task.target, options)]
    return torch.tensor(rows)


@torch.no_grad()
def adaptation_norms(
    model: PreTrainedModel, sequences: Tensor, before: PreTrainedModel | None = None
) -> list[LayerNorms]:
    """Measure the norms of proposition C.1 in every layer.

    Queries and keys are taken before biases, norms of their own (Qwen3) and the rotary embedding.

    Args:
        model: in full precision and evaluation mode, adapters merged.
        sequences: ids [sequences, L].
        before: the model before it was adapted, of the same shape; what changed in W_Q is (α/r)·B_Q·A_Q.

    Raises:
        UserError: the architecture is not known, linears are quantised or carry adapters, or the shapes differ.
    """
    found: dict[str, LayerNorms] = {}
    hooks = []
    for block in blocks(model):
        query_name, key_name = _states(model, block.name)
        query, factor = _matrix(model, query_name, 0), _head_width(model) ** -0.5
        changed = None
        if before is not None:
            old = _matrix(before, query_name, 0)
            if old.shape != query.shape:
                raise UserError(f"--before: {query_name} is {list(old.shape)} (expected {list(query.shape)})")
            changed = query - old

        def measure(
            _module: Any,
            given: tuple[Tensor, ...],
            *,
            name: str = block.name,
            matrices: tuple[Tensor, Tensor, Tensor | None] = (query * factor, _matrix(model, key_name, 1), changed),
            factor: float = factor,
        ) -> None:
            queries, keys, adapted = matrices
            adapter = None if adapted is None else factor * _largest(given[0], adapted)
            found[name] = LayerNorms(name, _largest(given[0], keys), _largest(given[0], queries), adapter)

        hooks.append(model.get_submodule(query_name).register_forward_pre_hook(measure))
    try:
        model(sequences.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def _largest(x: Tensor, matrix: Tensor) -> float:
    return float((x @ matrix.T).abs().max())


def _head_width(model: PreTrainedModel) -> int:
    config = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _states(model: PreTrainedModel, block: str) -> tuple[str, str]:
    """Name the linears that make queries and keys; it may be one."""
    names = [f"{block}.{name}" for name in architecture(model).states]
    return names[0], names[min(1, len(names) - 1)]


def _matrix(model: PreTrainedModel, name: str, part: int) -> Tensor:
    """Give W_Q (part 0) or W_K (part 1) as [out, in], cut out of the matrix that they may share."""
    whole = matrix(model.get_submodule(name))
    packing = architecture(model).packing
    if packing == "separate":
        return whole
    groups = model.config.num_attention_heads if packing == "heads" else 1
    return whole.unflatten(0, (groups, 3, -1))[:, part].flatten(0, 1)
