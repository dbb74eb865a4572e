from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from sparq.assets import embedded
from sparq.errors import UserError
from sparq.speech.audio import RATE, load_audio
from sparq.speech.recogniser import load_recogniser


@pytest.fixture(scope="module")
def judge():
    return load_recogniser("moonshine-tiny")


def test_real_speech_is_recognised(judge):
    (text,) = judge.transcribe([load_audio(embedded("recordings/two_cities.wav"))[: 8 * RATE]])
    assert "it was the best of times" in text.lower()
    assert "worst of times" in text.lower()


def test_silence_says_nothing_and_order_is_kept(judge):
    speech = load_audio(embedded("recordings/beckett.wav"))[: 5 * RATE]
    texts = judge.transcribe([np.zeros(RATE, np.float32), speech])
    assert texts[0] == ""
    assert len(texts[1].split()) >= 3


def test_bad_waveforms_are_refused_by_number(judge):
    with pytest.raises(UserError, match="waveform 0: holds no samples"):
        judge.transcribe([np.zeros(0, np.float32)])


def test_the_judge_does_not_need_a_sound_card():
    script = (
        "import sys; sys.modules['sounddevice'] = None\n"
        "from sparq.speech.recogniser import load_recogniser; load_recogniser()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def save_whisper(folder):
    """A Whisper with random weights: what it says is noise, how it is loaded and called is real."""
    folder.mkdir()
    letters = [chr(c) for c in range(33, 127)]
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|translate|>", "<|nospeech|>",
               "<|startofprev|>", "<|startoflm|>", "<|notimestamps|>"]  # fmt: skip
    stamps = [f"<|{i * 0.02:.2f}|>" for i in range(1501)]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens(stamps)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in special}
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=0,
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 12
    model.generation_config.no_timestamps_token_id = ids["<|notimestamps|>"]
    model.save_pretrained(folder)


def test_whisper_from_a_local_folder(tmp_path):
    save_whisper(tmp_path / "whisper")
    judge = load_recogniser(str(tmp_path / "whisper"))
    texts = judge.transcribe([0.1 * np.sin(np.arange(RATE, dtype=np.float32)), np.zeros(RATE, np.float32)])
    assert isinstance(texts[0], str)
    assert texts[1] == ""


def test_other_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_recogniser(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(UserError, match="is a opt model"):
        load_recogniser(str(tmp_path))
