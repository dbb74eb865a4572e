"""Nothing forgets where its tensors are: on a pretended GPU everything comes out as on the processor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pretended_gpu import compile_device


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="the device is compiled by g++")
def test_what_computes_does_so_on_any_device(tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    shutil.copy(tiny_run.audio, tmp_path / "run" / "said.wav")
    shutil.copy(tiny_run.recipe, tmp_path / "run" / "tiny.yaml")
    script = Path(__file__).with_name("on_pretended_gpu.py")
    command = [sys.executable, str(script), str(compile_device(tmp_path)), str(tmp_path / "run")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) > 25
    assert {name: told for name, told in found.items() if told} == {}
