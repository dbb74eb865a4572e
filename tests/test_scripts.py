"""Scripts beside the package: what they import is there, and they begin with what they do."""

import runpy
from argparse import Namespace
from pathlib import Path

import pytest

from sparq.corpus.corpus import Corpus
from sparq.errors import UserError

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("gpu/*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: f"{script.parent.name}/{script.stem}")
def test_a_script_can_be_started(script, monkeypatch):
    monkeypatch.syspath_prepend(script.parent)  # as Python does when it runs one; some import a neighbour
    names = runpy.run_path(str(script), run_name="started")
    assert names["__doc__"]
    assert callable(names["main"])


def test_a_training_in_calls_goes_on_with_what_it_began_with(tiny_run, tmp_path, monkeypatch):
    script = ROOT / "gpu" / "train_smollm2.py"
    monkeypatch.syspath_prepend(script.parent)
    require_same_start = runpy.run_path(str(script), run_name="started")["require_same_start"]
    corpus = Corpus.load(tiny_run.folder / "corpus")
    for _ in range(2):
        require_same_start(Namespace(state=tmp_path, model=Path("one.gguf")), corpus)
    with pytest.raises(UserError, match=r"was begun with the model one\.gguf, not other\.gguf; name another"):
        require_same_start(Namespace(state=tmp_path, model=Path("other.gguf")), corpus)
