"""QLoRA (Dettmers et al. 2023): adapters in full precision on a frozen base in 8 or 4 bits (paper, tables 2 and 10).

All linears of the blocks are packed, with or without an adapter; embeddings, norms, biases and the output layer stay as
they are. At the end the adapters are merged in full precision, into the unpacked weights that they were trained
beside, and the model is quantised, if it shall be, after that (paper, G.3): merged into 4 bits, most of what was learnt
would be rounded away.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from sparq.adaptation.lora import add_lora
from sparq.adaptation.packed_linear import PackedLinear, require_bitsandbytes, storage_grid
from sparq.attention.install import base_model
from sparq.config import LoraConfig, QloraConfig
from sparq.quantization.blocks import blocks

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class BaseMemory:
    """What packing the frozen base saves.

    Attributes:
        before: bytes of the weights of the packed linears as they were.
        after: bytes of the same in 8 or 4 bits, scales included.
    """

    before: int
    after: int


def add_qlora(
    model: PreTrainedModel, lora: LoraConfig, qlora: QloraConfig, seed: int = 0
) -> tuple[PeftModel, BaseMemory]:
    """Freeze a model in 8 or 4 bits, and add trainable adapters; embeddings and learned sinks are trained whole.

    Args:
        model: the language model, with the joint vocabulary's embeddings, in full precision.
        lora: the adapters. What their initialisation puts into them is taken out of the weights before packing; LoftQ
            makes up for the very grid that they are packed on.
        qlora: width of the base.
        seed: of the adapters.

    Raises:
        UserError: the architecture is not known, or bitsandbytes is not installed; the model is then as it was.
    """
    require_bitsandbytes()
    names = [name for block in blocks(model) for name in block.linears]
    adapted = add_lora(model, lora, seed, storage_grid(qlora.bits))
    return adapted, _pack(base_model(adapted), names, qlora.bits)


def _pack(model: PreTrainedModel, names: list[str], bits: int) -> BaseMemory:
    before = after = 0
    for name in names:
        found: Any = model.get_submodule(name)
        linear = getattr(found, "base_layer", found)
        packed = PackedLinear(linear, bits)
        before, after = before + linear.weight.nbytes, after + packed.bytes
        if linear is found:
            model.set_submodule(name, packed)
        else:
            found.base_layer = packed
    return BaseMemory(before, after)


def unpack_base(model: M) -> M:
    """Put ordinary linears, with what the packed weights stand for, in the place of packed ones; in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            model.set_submodule(name, module.unpack())
    return model
