"""Low-rank adapters on the linears of the paper's E.1, and the new embeddings trained in full beside them."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparq.adaptation.initialisers import initialise
from sparq.adaptation.packed_linear import Grid, PackedLinear
from sparq.attention.install import ADDED_MODULES
from sparq.config import LoraConfig
from sparq.errors import UserError
from sparq.quantization.blocks import matrix

logger = logging.getLogger(__name__)

# Architecture → target of the paper → the names of its linears. "v" may share a matrix with q and k.
_LLAMA_KIND = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "o": ("o_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
_GPT2_JOINED = ("attn.c_attn",)
_NEOX_JOINED = ("query_key_value",)
LINEARS: dict[str, dict[str, tuple[str, ...]]] = {
    "opt": {"q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("out_proj",), "mlp": ("fc1", "fc2")},
    "gpt2": {
        "q": _GPT2_JOINED,
        "k": _GPT2_JOINED,
        "v": _GPT2_JOINED,
        "o": ("attn.c_proj",),
        "mlp": ("mlp.c_fc", "mlp.c_proj"),
    },
    "gpt_neox": {
        "q": _NEOX_JOINED,
        "k": _NEOX_JOINED,
        "v": _NEOX_JOINED,
        "o": ("attention.dense",),
        "mlp": ("dense_h_to_4h", "dense_4h_to_h"),
    },
    "llama": _LLAMA_KIND,
    "mistral": _LLAMA_KIND,
    "qwen2": _LLAMA_KIND,
    "qwen3": _LLAMA_KIND,
}


@dataclasses.dataclass(frozen=True)
class AdapterShare:
    """How much of a model its adapters are (paper, table 11).

    Attributes:
        adapters: parameters of the low-rank matrices.
        embeddings: parameters trained whole beside them: input and output embeddings, learned sinks,
            gates.
        model: parameters of the model without adapters.
    """

    adapters: int
    embeddings: int
    model: int

    @property
    def percent(self) -> float:
        """Adapters as a percentage of the model, as table 11 counts them."""
        return 100 * self.adapters / self.model


def target_linears(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Name the linears that get an adapter, by the ends of their names.

    Raises:
        UserError: the architecture is not known.
    """
    known = LINEARS.get(model.config.model_type)
    if known is None:
        raise UserError(
            f"adaptation.method: lora does not know {model.config.model_type} (expected {', '.join(LINEARS)})"
        )
    return sorted({linear for target in config.targets for linear in known[target]})


def add_lora(model: PreTrainedModel, config: LoraConfig, seed: int = 0, grid: Grid | None = None) -> PeftModel:
    """Freeze a model, and add trainable adapters; embeddings, learned sinks and gates are trained whole.

    Args:
        model: the language model, with the joint vocabulary's embeddings. An initialisation other than the default
            takes out of its weights what it puts into the adapters.
        config: rank, alpha, dropout, targets and initialisation. A rank above the smaller side of a linear, as in a
            sweep, is taken as it is, with a warning.
        seed: of the adapters (by default their first matrices are random, their second ones zero).
        grid: where the weights will be stored; needed by LoftQ.

    Raises:
        UserError: the architecture is not known.
    """
    whole = [name for name, module in model.named_modules() if _trained_whole(model, name, module)]
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type] # it is only divided by
        lora_dropout=config.dropout,
        target_modules=target_linears(model, config),
        modules_to_save=sorted({name.rsplit(".", 1)[-1] for name in whole}),
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    adapted = get_peft_model(model, settings)
    _warn_of_idle_ranks(adapted, config.rank)
    initialise(adapted, config, grid)
    return adapted


def _warn_of_idle_ranks(adapted: PeftModel, rank: int) -> None:
    """Warn where a rank is above the smaller side of a linear: a matrix has no more ranks than that."""
    modules = ((name, module) for name, module in adapted.named_modules() if isinstance(module, LoraLayer))
    sides = {name.rpartition(".")[2]: min(matrix(module.get_base_layer()).shape) for name, module in modules}
    idle = sorted(name for name, side in sides.items() if side < rank)
    if idle:
        most = max(sides[name] for name in idle)
        logger.warning("lora.rank: %d is no better than %d in %s, only larger", rank, most, ", ".join(idle))


def _trained_whole(model: PreTrainedModel, name: str, module: nn.Module) -> bool:
    embedding = module is model.get_input_embeddings() or module is model.get_output_embeddings()
    return embedding or name.rpartition(".")[2] in ADDED_MODULES


def keep_words(model: PeftModel, words: int) -> None:
    """Let the embeddings and output rows of a text tokenizer stay as they are, and train those behind them alone.

    Args:
        model: with adapters.
        words: how many ids are the tokenizer's own.
    """

    def only_new(gradient: Tensor) -> Tensor:
        kept = gradient.clone()
        kept[:words] = 0
        return kept

    base: Any = model.get_base_model()
    for table in (base.get_input_embeddings(), base.get_output_embeddings()):
        for weight in table.parameters():
            if weight.requires_grad:
                weight.register_hook(only_new)


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Fold the adapters into the weights and return the plain model."""
    return model.merge_and_unload()


def adapter_share(model: PeftModel) -> AdapterShare:
    """Count the parameters of the adapters and of the model under them (paper, table 11)."""
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    embeddings = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name)
    everything = sum(p.numel() for p in model.parameters())
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    everything += sum(module.shape.numel() - module.packed.numel() - module.scale.numel() for module in packed)
    # PEFT keeps the frozen originals of what it trains in full; they are counted once.
    return AdapterShare(adapters, embeddings, everything - adapters - embeddings)
