"""A deployed model: ONNX Runtime behind the face of a transformers causal LM.

``generate`` with all its searches, likelihoods and everything else that calls a model forward works as with the model
that it was made from. What it cannot do is what a graph cannot: be trained, be looked into, or leave the CPU.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import override

from sparq.attention.install import CONFIG_KEY
from sparq.deployment.config import RECORD, DeploymentConfig
from sparq.deployment.decoder import LOGITS, PAST, PRESENT, head_shape
from sparq.deployment.graph import GRAPH, WEIGHTS
from sparq.errors import UserError


class GraphCache(Cache):
    """Keys and values of all layers, left where ONNX Runtime put them.

    Attributes:
        states: in the order of the graph's inputs, each [batch, kv_heads, length, width]; none before the first call.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.states: list[onnxruntime.OrtValue] = []

    @override
    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.states[0].shape()[2]) if self.states else 0

    @override
    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.states and not torch.equal(beam_idx, torch.arange(self.states[0].shape()[0])):
            self.states = [_value(torch.from_numpy(one.numpy())[beam_idx]) for one in self.states]


class DeployedModel(PreTrainedModel, GenerationMixin):
    """A causal LM that ONNX Runtime computes, on as many threads as torch has when it is opened.

    Attributes:
        folder: where it lies.
        settings: how it was deployed.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open what `sparq.deployment.deploy` wrote.

        Raises:
            UserError: there is no such model, or it is damaged.
        """
        self.folder = Path(folder)
        try:
            super().__init__(AutoConfig.from_pretrained(self.folder))
            self.settings = DeploymentConfig(**getattr(self.config, RECORD))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 4
            graph = self.folder / GRAPH
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a dozen kinds
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{self.folder}: damaged or missing deployed model ({reason})") from error
        self.generation_config = GenerationConfig.from_model_config(self.config)
        self._past = [one.name for one in self._session.get_inputs() if one.name.startswith(PAST)]
        self._outputs = [LOGITS, *(name.replace(PAST, PRESENT) for name in self._past)]
        self.name_or_path = str(self.folder)

    @property
    def attention(self) -> dict[str, Any] | None:
        """The attention in its graph, as `sparq.attention.AttentionSettings` records it; None for the ordinary one."""
        return getattr(self.config, CONFIG_KEY, None)

    @property
    @override
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    @override
    def dtype(self) -> torch.dtype:
        return torch.float32

    @classmethod
    @override
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first pass makes a cache of its own

    @override
    def get_input_embeddings(self) -> nn.Module:
        """Give the shape of the embeddings; their values are in the graph."""
        return nn.Embedding(self.config.vocab_size, self.config.hidden_size, device="meta")

    @override
    def get_output_embeddings(self) -> nn.Module:
        """Give the shape of the output layer; its values are in the graph."""
        return nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False, device="meta")

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: GraphCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **keywords: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits.

        Args:
            input_ids: [batch, length].
            attention_mask: [batch, cached and new length], 1 on real tokens, padded on either side; all if None.
            position_ids: [batch, length]; counted from the first real token if None.
            past_key_values: what a call before this one returned; it is carried on in place.
            use_cache: whether a cache is returned; None for yes.
            logits_to_keep: logits of so many last tokens; 0 for all.
            keywords: what else ``generate`` passes on, which changes nothing.

        Returns:
            Logits [batch, kept, vocabulary], and the cache. Those of padding mean nothing.
        """
        cache = GraphCache() if past_key_values is None else past_key_values
        batch, length = input_ids.shape
        if attention_mask is None:
            attention_mask = torch.ones(batch, cache.get_seq_length() + length, dtype=torch.long)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -length:]
        feed = {
            "input_ids": _value(input_ids),
            "attention_mask": _value(attention_mask.long()),
            "position_ids": _value(position_ids.expand(batch, -1)),
            "logits_to_keep": _value(torch.tensor([logits_to_keep])),
        }
        feed |= zip(self._past, cache.states or self._nothing(batch), strict=True)
        wanted = self._outputs[:1] if use_cache is False else self._outputs
        logits, *cache.states = self._session.run_with_ort_values(wanted, feed)
        kept = None if use_cache is False else cache
        return CausalLMOutputWithPast(logits=torch.from_numpy(logits.numpy()), past_key_values=kept)

    def _nothing(self, batch: int) -> list[onnxruntime.OrtValue]:
        shape = head_shape(self.config)
        empty = _value(torch.empty(batch, shape.kv_heads, 0, shape.width))
        return [empty] * len(self._past)

    @override
    def save_pretrained(self, save_directory: Any, *arguments: Any, state_dict: Any = None, **keywords: Any) -> None:
        """Copy the model into a folder; weights in another precision are another deployment's matter.

        Raises:
            UserError: other weights than its own are to be saved.
        """
        if state_dict is not None:
            raise UserError(f"{self.folder}: is deployed ({self.settings.name}); its weights stay as they are")
        self.config.save_pretrained(save_directory)
        for name in (GRAPH, WEIGHTS):
            shutil.copyfile(self.folder / name, Path(save_directory) / name)


def _value(tensor: Tensor) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy())
