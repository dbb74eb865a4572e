"""A model in low bits that stays a torch model, on a GPU as well: its layers' weights become codes.

Saved and restored by transformers' own ``save_pretrained`` and ``from_pretrained``, for which its layers are registered
as a quantisation method. Transformers' files of torchao are not used: they hold 4 bits in the layout of the GPU that
made them, padded to 1,024 inputs, and in a processor's layout not at all; codes and grids are the same everywhere.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparq.attention.install import own_configuration
from sparq.deployment.config import RECORD, DeploymentConfig
from sparq.deployment.low_bit_layers import Int4Linear, Int8Embedding, Int8Linear, TiedOutput, group_size, torchao
from sparq.deployment.reading import require_merged
from sparq.device import known_device
from sparq.errors import UserError
from sparq.quantization.blocks import architecture, blocks, matrix

M = TypeVar("M", bound=PreTrainedModel)

_NEWER = (8, 0)  # CUDA's compute capability


def quantize_in_torch(model: M, config: DeploymentConfig) -> M:
    """Put a model into low bits, in place.

    All linears of the blocks take ``config.bits``, embeddings and the output layer 8. Of 4 bits the kernels take inputs
    in multiples of 32 and outputs in multiples of 16; a linear of another shape takes 8.

    Args:
        model: a causal LM in the block table, with any attention, in full precision, adapters merged.
        config: the width, for the engine "torch".

    Returns:
        The same model, which ``save_pretrained`` saves, and ``from_pretrained`` gives back.

    Raises:
        UserError: torchao is missing; the model is deployed or quantised already, or has adapters or weights that are
            not finite. The model is then as it was.
    """
    config.require("torch")
    require_merged(model)
    architecture(model)  # refuses a deployed model
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError("deployment: the torch engine rounds by itself; give it the model before it was quantised")
    torchao("quantization")
    _require_finite(model)
    own_configuration(model)
    inputs, outputs = (layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings()))
    model.config.tie_word_embeddings = inputs is outputs
    _replace(model, config.bits)
    setattr(model.config, RECORD, config.record())
    quantizer = LowBitQuantizer(LowBitQuantizationConfig())
    quantizer.postprocess_model(model)
    marked: Any = model  # attributes that transformers sets without declaring them
    marked.hf_quantizer, marked.quantization_method, marked.is_quantized = quantizer, RECORD, True
    return model


def quantized_copy(model: M, config: DeploymentConfig) -> M:
    """Make a model in low bits beside one that stays as it is; what is not rounded, they share.

    Raises:
        UserError: as `quantize_in_torch`.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return quantize_in_torch(copy.deepcopy(model, dict(shared)), config)


def require_device(device: str, bits: int) -> None:
    """Refuse a device that does not compute with so many bits in torch.

    Raises:
        UserError: it is of another kind, not there or too old.
    """
    found = known_device(device)
    if found.type not in {"cpu", "cuda"}:
        raise UserError(f"device: {device} (low bits in torch compute on the cpu or on cuda)")
    if bits == 4 and not multiplies_four_bits(found):
        raise UserError(f"device: {device} (too old for 4 bits; deploy with 8)")


def multiplies_four_bits(device: torch.device) -> bool:
    """Whether a device has the products of 4 bits: every CPU, though those without AVX-512 are slow, and newer GPUs."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= _NEWER


@register_quantization_config(RECORD)
class LowBitQuantizationConfig(QuantizationConfigMixin):
    """The ``quantization_config`` in a saved model's config.json; the width is in the deployment's record."""

    def __init__(self, quant_method: str = RECORD) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]  # registered methods are plain strings


@register_quantizer(RECORD)
class LowBitQuantizer(HfQuantizer):
    """Gives a model its low-bit layers before ``from_pretrained`` fills in codes and grids."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        torchao("quantization")
        record = getattr(model.config, RECORD)
        delattr(model.config, RECORD)  # until its layers are replaced, it is the model that was deployed
        _replace(model, DeploymentConfig(**record).bits)
        setattr(model.config, RECORD, record)
        return model

    def is_serializable(self) -> bool:
        """Codes and grids are ordinary tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradient."""
        return False


def _replace(model: PreTrainedModel, bits: int) -> None:
    """Put low-bit layers in place; those of a model on the meta device have shapes and wait for their values."""
    for name in _linears(model):
        linear: Any = model.get_submodule(name)
        weight = matrix(linear)
        kind = Int4Linear if bits == 4 and group_size(weight) else Int8Linear
        model.set_submodule(name, kind(weight, linear.bias))
    embeddings: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    table = Int8Embedding(embeddings.weight)
    tied = model.config.tie_word_embeddings
    model.set_submodule(_name(model, output), TiedOutput(table) if tied else Int8Linear(output.weight, output.bias))
    model.set_submodule(_name(model, embeddings), table)
    model.all_tied_weights_keys = {}  # what is tied now is no parameter


def _name(model: PreTrainedModel, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _linears(model: PreTrainedModel) -> list[str]:
    return [name for block in blocks(model) for name in block.linears]


def _require_finite(model: PreTrainedModel) -> None:
    found = {name: model.get_submodule(name) for name in _linears(model)}
    found |= {"the embeddings": model.get_input_embeddings(), "the output layer": model.get_output_embeddings()}
    for name, module in found.items():
        weight: Any = module.weight
        if not bool(weight.isfinite().all()):
            raise UserError(f"{name}: holds a value that is not finite")
