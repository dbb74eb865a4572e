"""What ``import sparq`` offers, and how little it takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sparq
from sparq.errors import UserError


def test_importing_loads_nothing_heavy():
    program = (
        "import sys, sparq; print(sorted({'torch', 'transformers', 'numpy', 'sparq.attention'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in sparq.__all__:
        assert getattr(sparq, name) is not None
    assert set(sparq.__all__) <= set(dir(sparq))
    assert sparq.install_attention.__module__ == "sparq.attention.install"
    assert callable(sparq.outliers)
    assert sparq.QuantizationConfig(weight_bits=4).bits == "W4A8"
    with pytest.raises(AttributeError, match="no attribute 'unheard_of'"):
        _ = sparq.unheard_of


def test_load_names_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="not a SpARQ speechlm folder"):
        sparq.load(tmp_path)
