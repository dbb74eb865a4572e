"""Rotation (QuaRot: Ashkboos et al., 2024): turn the activations so that no channel is larger than the others.

An orthogonal matrix Q that is multiplied into everything that writes the residual stream, and Qᵀ into everything that
reads it, leaves the function of a pre-norm model alone: an RMS norm without weight commutes with Q. Each outlier
channel is then spread over all channels, and low-bit grids fit. Nothing is learnt, and only 4. costs anything later.

1. The weight and the bias of each norm go into the linears that read it. A layer norm is an RMS norm after taking the
   mean out, which goes into the linears and embeddings that write the stream, so that it never has a mean.
2. The stream is rotated: embeddings (of positions too), both outputs of each block, all linears that read a norm, and
   the output layer, which is untied from the embedding first.
3. The values are rotated within each head, by the same matrix in all of them, so that grouped heads share it too; the
   linear after the attention turns them back. Any sink only scales a head's output, and commutes.
4. The input of the MLP's last linear is rotated as it comes (`SimulatedLinear.rotate_input`), since there is an
   activation function before it.

Queries and keys are not rotated: a rotation would have to come after the rotary embedding, which is not ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparq.attention import installed
from sparq.errors import UserError
from sparq.quantization.blocks import Block, architecture, blocks, matrix
from sparq.quantization.hadamard import random_signs, rotate

HEAD_MODULES = ("q_norm", "k_norm", "sink_logit")  # see queries, keys and scores of heads, never the stream


@torch.no_grad()
def rotate_model(model: PreTrainedModel, seed: int) -> torch.Generator:
    """Fold the rotations of a model into its weights (steps 1 to 3), in place; its function stays the same.

    Args:
        model: a pre-norm causal language model in full precision.
        seed: of the random signs.

    Returns:
        What further signs are drawn from, for `rotate_mlp_outputs`.

    Raises:
        UserError: the model is of another kind, or not in full precision. It is then as it was.
    """
    found = blocks(model)
    _require_rotatable(model, found)
    generator = torch.Generator().manual_seed(seed)
    row = architecture(model)
    _untie(model)
    norms = [(model.get_submodule(name), readers) for name, readers in _norms(model, found)]
    restructure(model)
    for norm, readers in norms:
        for linear in readers:
            _absorb(norm, linear)

    embeddings: list[Any] = [model.get_submodule(name) for name in row.embeddings]
    signs = random_signs(matrix(model.get_output_embeddings()).shape[1], generator)
    stream = _Stream(signs, centred=isinstance(norms[0][0], nn.LayerNorm))
    for _, readers in norms:
        for linear in readers:
            stream.read(linear)
    for embedding in embeddings:
        embedding.weight.copy_(stream.written(embedding.weight))
    for block in found:
        for name in (block.attention.output, block.mlp_output):
            stream.write(model.get_submodule(name))
    _rotate_values(model, found, generator)
    return generator


@torch.no_grad()
def rotate_mlp_outputs(model: PreTrainedModel, found: list[Block], generator: torch.Generator) -> None:
    """Rotate what enters the last linear of each MLP, at run time (step 4).

    Args:
        model: one whose linears are `SimulatedLinear`, weights not yet rounded; changed in place.
        found: its blocks.
        generator: of the random signs.
    """
    for block in found:
        linear: Any = model.get_submodule(block.mlp_output)
        linear.rotate_input(random_signs(linear.matrix.shape[1], generator))


def restructure(model: PreTrainedModel) -> None:
    """Give a model the modules of a rotated one; weights are not looked at, so they need not be there yet.

    Norms that read the stream become RMS norms without weight, and linears that take over a bias get one.
    """
    for name, readers in list(_norms(model, blocks(model))):
        norm: Any = model.get_submodule(name)
        if getattr(norm, "bias", None) is not None:
            for linear in readers:
                if linear.bias is None:
                    linear.bias = nn.Parameter(torch.zeros_like(linear.weight[:, 0]), linear.weight.requires_grad)
        epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        plain = nn.RMSNorm(model.config.hidden_size, epsilon, elementwise_affine=False)
        model.set_submodule(name, plain.train(norm.training))


def _norms(model: PreTrainedModel, found: list[Block]) -> Iterator[tuple[str, list[Any]]]:
    """The name of each norm that reads the stream, and the linears that read it."""
    for block in found:
        for siblings in block.smoothed:
            yield siblings.norm_name, [model.get_submodule(name) for name in siblings.linears]
    yield architecture(model).final_norm, [model.get_output_embeddings()]


def _require_rotatable(model: PreTrainedModel, found: list[Block]) -> None:
    row, kind = architecture(model), type(model).__name__
    if not row.pre_norm(model.config):
        raise UserError(
            f"{kind}: is a post-norm model, whose norms are part of the residual stream; "
            "method 'rotation' needs a pre-norm one, choose smoothquant"
        )
    attention = installed(model)
    if attention is not None and attention.gated:
        # A gate reads its head's slice of what the norm gives, and a rotation puts every slice into all channels.
        raise UserError(
            f"{kind}: has gated attention, whose gates read single slices of the residual stream; "
            "method 'rotation' mixes them, choose smoothquant"
        )
    parent, _, norm = row.final_norm.rpartition(".")
    if getattr(model.get_submodule(parent), norm, None) is None:
        raise UserError(f"{kind}: has no norm before its output layer, which method 'rotation' needs")
    width = model.config.hidden_size
    for name in row.embeddings:
        embedding = model.get_submodule(name)
        if not isinstance(embedding, nn.Embedding):
            raise UserError(f"{name}: is a {type(embedding).__name__}, not a plain embedding; merge adapters first")
        if embedding.embedding_dim != width:
            raise UserError(f"{name}: is {embedding.embedding_dim} wide, not {width} as method 'rotation' needs")
    output = model.get_output_embeddings()
    if type(output) is not nn.Linear:
        raise UserError(f"the output layer is a {type(output).__name__}, not a plain linear; merge adapters first")
    _require_known_modules(model, found)


def _require_known_modules(model: PreTrainedModel, found: list[Block]) -> None:
    row = architecture(model)
    for block in found:
        turned = {*block.linears, f"{block.name}.{row.attention_norm}", f"{block.name}.{row.mlp_norm}"}
        for parameter, _ in model.get_submodule(block.name).named_parameters(block.name):
            owner = parameter.rpartition(".")[0]
            if owner not in turned and owner.rpartition(".")[2] not in HEAD_MODULES:
                raise UserError(f"{owner}: method 'rotation' does not know how to turn what it reads")


def _untie(model: Any) -> None:
    """Give the output layer a weight of its own: it takes over the final norm's, and the embedding does not."""
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output.weight is embedding.weight:
        output.weight = nn.Parameter(output.weight.detach().clone(), output.weight.requires_grad)
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=False)


def _absorb(norm: Any, linear: Any) -> None:
    """W(γ∘x + β) + b = (W·diag(γ))x + (Wβ + b): the norm's weight and bias into a linear that reads it."""
    weight = matrix(linear)
    wide = weight.double()
    if getattr(norm, "bias", None) is not None:
        linear.bias.copy_(linear.bias.double() + wide @ norm.bias.double())
    if norm.weight is not None:
        weight.copy_(wide * norm.weight.double())


class _Stream:
    """The rotation Q of the residual stream, in float64: rows x of the stream become (x − mean)·Q, or x·Q."""

    def __init__(self, signs: Tensor, *, centred: bool) -> None:
        self.signs, self.centred = signs, centred

    def written(self, rows: Tensor) -> Tensor:
        """What is written in place of some rows [..., hidden]."""
        rows = rows.double()
        if self.centred:
            rows = rows - rows.mean(-1, keepdim=True)
        return rotate(rows, self.signs.to(rows.device))

    def write(self, linear: Any) -> None:
        """Turn the output of a linear."""
        weight = matrix(linear)
        weight.copy_(self.written(weight.T).T)
        if linear.bias is not None:
            linear.bias.copy_(self.written(linear.bias))

    def read(self, linear: Any) -> None:
        """Turn the input of a linear back."""
        weight = matrix(linear)
        weight.copy_(rotate(weight.double(), self.signs.to(weight.device)))


def _rotate_values(model: PreTrainedModel, found: list[Block], generator: torch.Generator) -> None:
    """Rotate the values within each head, and turn them back in the linear after the attention."""
    for block in found:
        attention = block.attention
        columns = matrix(model.get_submodule(attention.output)).unflatten(1, (-1, attention.width))
        signs = random_signs(attention.width, generator).to(columns.device)
        columns.copy_(rotate(columns.double(), signs))
        linears: list[Any] = [model.get_submodule(name) for name in attention.linears]
        for rows in ([matrix(linear) for linear in linears], [linear.bias for linear in linears]):
            if rows[-1] is not None:
                values = attention.split(rows)[-1]  # [heads, width, ...], a view of the rows that make values
                values.copy_(rotate(values.movedim(1, -1).double(), signs).movedim(-1, 1))
