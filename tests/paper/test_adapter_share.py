from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from sparq.adaptation.lora import adapter_share, add_lora
from sparq.config import LORA_TARGETS, LoraConfig
from sparq.paper.adapter_share import FOUND, OPT, count_adapters, explanations, nominal_size, table_11

_IDS = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, "tie_word_embeddings": False}
SMALL = {
    "post-norm OPT": OPTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=24, word_embed_proj_dim=8,
        do_layer_norm_before=False, max_position_embeddings=32, **_IDS,
    ),
    "grouped Llama": LlamaConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40, **_IDS
    ),
    "GPT-2": GPT2Config(n_embd=16, n_layer=2, n_head=4, n_inner=24, n_positions=32, **_IDS),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(SMALL))
@pytest.mark.parametrize("targets", [LORA_TARGETS, ("q", "k", "v", "o"), ("v",), ("mlp", "o")])
def test_counts_what_peft_makes(kind, targets):
    lora = LoraConfig(rank=3, targets=targets)
    counted = count_adapters(SMALL[kind], lora)
    share = adapter_share(add_lora(AutoModelForCausalLM.from_config(SMALL[kind]), lora))
    assert (counted.adapters, counted.model) == (share.adapters, share.model)
    assert counted.percent == share.percent


def test_the_shapes_are_the_published_ones():
    sizes = {model: count_adapters(config, FOUND).model for model, config in OPT.items()}
    assert sizes == {"OPT-125m": 125_239_296, "OPT-350m": 331_196_416, "OPT-1.3b": 1_315_758_080}


def test_table_11_is_half_the_stated_rank_without_the_mlp():
    rows = table_11()
    # By hand: 12 · 4 · 128 · 1536, and so on; with E.1's rank and the MLP 4.5 times as many.
    assert [row.found.adapters for row in rows] == [9_437_184, 25_165_824, 50_331_648]
    assert [row.stated.adapters / row.found.adapters for row in rows] == [4.5] * 3
    assert [round(row.found.adapters / 1e6, 1) for row in rows] == [row.printed / 1e6 for row in rows]
    assert [round(row.nominal_percent, 1) for row in rows] == [row.printed_percent for row in rows]
    assert [round(row.found.percent, 1) for row in rows] == [7.5, 7.6, 3.8]


def test_what_else_the_printed_numbers_follow_from():
    found = {(config.rank, config.targets) for config in explanations()}
    assert (256, LORA_TARGETS) not in found
    assert (128, ("q", "k", "v", "o")) in found
    assert (256, ("q", "v")) in found
    # 2d parameters a rank for each of the four, 10d for the MLP of width 4d.
    widths = {(rank, sum(10 if target == "mlp" else 2 for target in targets)) for rank, targets in found}
    assert widths == {(128, 8), (256, 4), (512, 2), (64, 16)}


def test_sizes_of_names():
    assert [nominal_size(model) for model in OPT] == [125e6, 350e6, 1.3e9]
