from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
)

from sparq.adaptation.start import INITIAL_DEVIATION, new_model, pretrained_model
from sparq.attention import install, installed
from sparq.config import ModelConfig
from sparq.errors import UserError

TEXT_ROWS = 320  # of the pretrained embeddings, more than the tokenizer has ids, as OPT's
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
PRETRAINED = {
    "llama": lambda **m: LlamaConfig(**SHAPE, intermediate_size=24, **m),
    "opt": lambda **m: OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16, **m),
    # As OPT-350m: embeddings narrower than the blocks, norms behind them.
    "opt-350m": lambda **m: OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=8, do_layer_norm_before=False, **m),
    "gpt2": lambda **m: GPT2Config(n_embd=16, n_layer=2, n_head=2, **m),
    "gpt_neox": lambda **m: GPTNeoXConfig(**SHAPE, intermediate_size=24, **m),
}


def save_pretrained(kind, folder, **more):
    torch.manual_seed(3)
    config = PRETRAINED[kind](vocab_size=TEXT_ROWS, max_position_embeddings=64, **more)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weights in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            weights.add_(torch.linspace(-1, 1, weights.shape[1]))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_a_new_model_has_the_shape_and_the_ids(vocabulary, architecture):
    shape = ModelConfig(
        architecture=architecture,
        hidden_size=64,
        layers=3,
        heads=4,
        intermediate_size=96,
        max_positions=80,
        dropout=0.2,
    )
    model = new_model(shape, vocabulary, seed=5)
    config = model.config
    assert config.model_type == architecture
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 4)
    assert model.get_input_embeddings().weight.shape == (vocabulary.size, 64)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, None, vocabulary.end_id)
    assert config.max_position_embeddings == 80
    assert config.attention_dropout == 0.2
    assert getattr(config, "dropout", 0.2) == 0.2
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    assert model.get_output_embeddings().weight.std().item() == pytest.approx(INITIAL_DEVIATION, rel=0.1)
    block = model.get_submodule(
        "model.layers.0.mlp.up_proj" if architecture == "llama" else "model.decoder.layers.0.fc1"
    )
    assert block.weight.shape == (96, 64)
    assert block.weight.std().item() == pytest.approx(INITIAL_DEVIATION, rel=0.1)
    assert model(torch.tensor([[2, 3, 4]])).logits.shape == (1, 3, vocabulary.size)


def test_the_seed_gives_the_weights(vocabulary, tiny_shape):
    one, again, other = (new_model(tiny_shape, vocabulary, seed).get_input_embeddings().weight for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", list(PRETRAINED))
def test_an_extended_vocabulary_keeps_the_language(kind, tied, extended, tmp_path):
    before = save_pretrained(kind, tmp_path / "text", tie_word_embeddings=tied)
    model = pretrained_model(tmp_path / "text", extended).eval()
    kept = extended.text_size
    ids = torch.tensor([extended.encode_text("one two eleven twelve")])
    with torch.no_grad():
        old, new = before(ids).logits[..., :kept], model(ids).logits
    torch.testing.assert_close(new[..., :kept], old, rtol=1e-5, atol=1e-5)
    assert new.shape[-1] == model.config.vocab_size == extended.size
    assert model.config.pad_token_id == extended.pad_id
    assert model.generation_config.eos_token_id == extended.end_id
    _assert_untied(model)
    # New embeddings lie among the old ones.
    rows = before.get_input_embeddings().weight
    fresh = model.get_input_embeddings().weight[kept:]
    assert (fresh.mean(0) - rows.mean(0)).abs().max() < rows.std(0).max()
    assert fresh.std().item() == pytest.approx(rows.std().item(), rel=0.3)


def test_new_pieces_take_little_from_the_words(extended, tmp_path):
    """In a trained model the states point to few output rows, and away from their mean; here to one row of 320."""
    save_pretrained("llama", tmp_path / "text", tie_word_embeddings=False)
    model = pretrained_model(tmp_path / "text", extended).eval()
    rows, kept = model.get_output_embeddings().weight.detach(), extended.text_size
    spread = rows[:kept] - rows[:kept].mean(0)
    states = 6 * spread / spread.std() / spread.shape[1] ** 0.5
    taken = (states @ (rows / spread.std()).T).softmax(-1)[:, kept:].sum(-1)
    assert taken.mean() < 1e-3


@pytest.mark.parametrize("kind", ["llama", "opt-350m"])
def test_a_joint_vocabulary_keeps_the_blocks_alone(kind, vocabulary, tmp_path):
    before = save_pretrained(kind, tmp_path / "text", tie_word_embeddings=True)
    model = pretrained_model(tmp_path / "text", vocabulary, seed=1)
    again = pretrained_model(tmp_path / "text", vocabulary, seed=1)
    assert model.get_input_embeddings().weight.shape[0] == vocabulary.size
    old = before.get_input_embeddings().weight
    assert not any(torch.equal(a, b) for a, b in zip(model.get_input_embeddings().weight, old, strict=False))
    _assert_untied(model)
    for (name, new), (_, repeated) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(new, repeated), name
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(new, before.get_parameter(name)), name


def _assert_untied(model):
    model.tie_weights()  # as transformers does on its own occasions
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    assert not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)


def test_the_adapted_model_is_saved_whole(extended, tmp_path):
    save_pretrained("llama", tmp_path / "text", tie_word_embeddings=True)
    model = pretrained_model(tmp_path / "text", extended)
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert model.state_dict().keys() == loaded.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())


def test_pretrained_attention_comes_along(vocabulary, tmp_path):
    model = save_pretrained("llama", tmp_path / "text")
    install(model, "learned").save_pretrained(tmp_path / "text")
    loaded = pretrained_model(tmp_path / "text", vocabulary)
    assert installed(loaded).sink == "learned"


def test_a_tokenizer_of_another_model_is_refused(extended, tmp_path):
    config = PRETRAINED["llama"](vocab_size=50, max_position_embeddings=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 50 embeddings, too few for the"):
        pretrained_model(tmp_path, extended)


@pytest.mark.parametrize("damage", ["absent", "empty", "cut"])
def test_what_cannot_be_loaded_is_named(vocabulary, tmp_path, damage):
    folder = tmp_path / "text"
    if damage != "absent":
        folder.mkdir()
    if damage == "cut":
        save_pretrained("llama", folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model.name: .*text: (cannot be loaded|there is no such folder)") as error:
        pretrained_model(folder, vocabulary)
    assert "\n" not in str(error.value)
