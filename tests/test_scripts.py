"""Scripts beside the package: what they import is there, and they begin with what they do."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("gpu/*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"{script.parent.name}/{script.stem}")
def test_a_script_can_be_started(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)  # as Python does when it runs one; some import a neighbour
    names = runpy.run_path(str(script), run_name="started")
    assert names["__doc__"]
    assert callable(names["main"])
