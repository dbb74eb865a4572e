from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig

from sparq.adaptation.lora import add_lora
from sparq.adaptation.loss import counted_loss, logits_where_labels_count
from sparq.attention.install import base_model
from sparq.config import LoraConfig
from sparq.language.tasks import IGNORED

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "vocab_size": 30}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, intermediate_size=24),
    "opt": OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16, dropout=0.0),
    "opt-350m": OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=8, do_layer_norm_before=False, dropout=0.0),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "gpt_neox": GPTNeoXConfig(**SHAPE, intermediate_size=24),
}


@pytest.fixture(params=list(CONFIGS))
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]).double().train()


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(30, (3, 11), generator=random)
    labels = ids.clone()
    labels[torch.rand(ids.shape, generator=random) < 0.6] = IGNORED
    labels[:, 0] = IGNORED
    labels[2] = IGNORED  # an example that is all condition
    return {"input_ids": ids, "labels": labels}


def ours(model, batch, **options):
    with logits_where_labels_count(base_model(model), batch["labels"]):
        outputs = model(input_ids=batch["input_ids"])
    return counted_loss(outputs, batch["labels"], **options)


def definition(model, batch, smoothing=0.0, count=None):
    logits, labels = model(input_ids=batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
    total = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing)
    return total / (count or (labels != IGNORED).sum())


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(("smoothing", "count"), [(0.0, None), (0.1, None), (0.1, 40)])
def test_loss_and_gradients_are_those_of_all_logits(model, batch, smoothing, count):
    kept = ours(model, batch, smoothing=smoothing, num_items_in_batch=count)
    whole = definition(model, batch, smoothing, count)
    torch.testing.assert_close(kept.double(), whole, rtol=1e-6, atol=0)  # summed in float32, as in training
    expected = gradients(whole, model)
    found = gradients(kept, model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_with_adapters_too(batch):
    torch.manual_seed(0)
    model = add_lora(AutoModelForCausalLM.from_config(CONFIGS["llama"]), LoraConfig(rank=2, dropout=0.0))
    torch.testing.assert_close(ours(model, batch), definition(model, batch))


def test_only_what_counts_reaches_the_output_layer(model, batch):
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda *given: seen.append(given[2].shape))
    ours(model, batch)
    handle.remove()
    assert seen == [(int((batch["labels"] != IGNORED).sum()), 30)]


def test_afterwards_the_model_has_all_its_logits_again(model, batch):
    with pytest.raises(ZeroDivisionError), logits_where_labels_count(model, batch["labels"]):
        _ = 1 / 0
    assert model(input_ids=batch["input_ids"]).logits.shape == (3, 11, 30)
