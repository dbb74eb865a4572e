"""``sparq paper``: the printed tables, and appendix C."""

from __future__ import annotations

import json


def test_paper_tables(sparq):
    code, out, err = sparq("paper", "list")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 12
    assert "2    low-rank adaptation (6 printed drops do not follow from their rows)" in out.splitlines()
    code, out, err = sparq("paper", "show", "2")
    assert (code, err) == (0, "")
    row = next(line for line in out.splitlines() if line.split()[:3] == ["OPT-350m", "vanilla", "lora"])
    assert row.split()[-2:] == ["233.98≠", "381.00"]
    told = json.loads(sparq("paper", "show", "2", "--json")[1])
    assert len(told["printed"]) == len(told["recomputed_drops"]) == 18
    assert sum(drop["printed_follows"] is False for drop in told["recomputed_drops"]) == 6
    assert "NaN loss" in sparq("paper", "show", "4")[1]
    code, out, err = sparq("paper", "show", "12")
    assert (code, out) == (2, "")
    assert err.startswith("sparq: table 12: the paper has none of this name")


def test_paper_theory(sparq, tiny_run, lm):
    asked = ("paper", "theory", "--model", lm, "--length", 24, "--sequences", 1)
    other = tiny_run.folder / "none" / "speechlm"
    code, out, err = sparq(*asked, "--before", other, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["theorem"]["sufficient"] == 4
    assert told["proposition"]["length"] == 24
    (layer,) = told["proposition"]["layers"]
    assert min(layer["keys"], layer["queries"], layer["adapters"]) > 0
    code, out, err = sparq(*asked)
    assert (code, err) == (0, "")
    assert out.startswith("Theorem C.1, random models: gaps 7, 7, 7, sufficient rank 4\n")
    assert "Proposition C.1, 2 sequences of 24 pieces: √(ln L) = 1.78" in out
    assert f"{layer['keys']:.2f}" in out
    assert sparq(*asked[:4], "--length", 9999)[0] == 2
