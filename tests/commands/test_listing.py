"""What there is: ``sparq assets`` and ``sparq voices``."""

from __future__ import annotations

import json
from pathlib import Path

from sparq.commands.corpora import _file_name
from sparq.speech.audio import load_audio


def test_assets(sparq):
    code, out, _ = sparq("assets", "--json")
    found = {asset["name"]: asset for asset in json.loads(out)}
    assert code == 0
    assert found["codebook"]["kind"] == "shipped"
    assert found["hibari"]["missing"] is None
    _, out, _ = sparq("assets")
    assert len(out.splitlines()) == len(found)


def test_every_voice_has_a_file_of_its_own():
    assert [_file_name(name) for name in ("hibari", "piper:/v/en.onnx", "piper:/v/en.onnx#p1", "piper:/v/en.onnx#p2")] == [
        "hibari", "en", "en-p1", "en-p2",
    ]  # fmt: skip


def test_voices(sparq, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARQ_CACHE", str(tmp_path))
    code, out, _ = sparq("voices", "hibari", "kokoro-af_sky", "--json")
    hibari, sky = json.loads(out)
    assert (code, hibari) == (0, {"name": "hibari", "missing": None})
    assert sky["missing"].startswith("kokoro-af_sky: ")
    _, out, _ = sparq("voices", "flite")
    assert [line.split()[0] for line in out.splitlines()] == ["flite-awb", "flite-rms", "flite-slt", "flite-kal"]
    code, out, _ = sparq("voices", "hibari", "--say", "Yes.", "--speed", "0.5", "-o", "said")
    assert (code, out) == (0, f"said/hibari.wav: {len(load_audio('said/hibari.wav')) / 16000:.1f} s\n")
    Path("said.txt").write_text("Yes.\n")
    code, _, err = sparq("corpus", "said.txt", "--kind", "text", "--voice", "hibari", "--voice", "robot", "-o", "made")
    assert (code, err[:28]) == (2, "sparq: robot: no such voice;")
    assert sparq("voices", "robot")[0] == sparq("voices", "--say", "Yes.")[0] == 2
