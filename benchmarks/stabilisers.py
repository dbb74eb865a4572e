"""Say which of the paper's stabilisers diverge (Tables 4 and 7), in which precision, and from what.

    python benchmarks/stabilisers.py                    # the table in results/stabilisers.json
    python benchmarks/stabilisers.py --output /tmp/check.json

The formulas are those of ``sparq.attention.stabilisers``, computed step by step in one precision on the processor. For
every stabiliser, precision and kind of hidden position, each failure is given with the smallest magnitude of the
scores at which it appears, over rows of both signs, of positive and of negative scores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sparq.artifacts import provenance, write_text
from sparq.attention.stabilisers import DTYPES, KEYS, MAGNITUDES, MASKS, PATTERNS, STABILISERS, ZEROS, Case, survey

TOLD = {"output": "NaN or inf", "gradient": "NaN gradient", "wrong": "wrong, though finite"}


def failures(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Find what happens first: each kind of failure with the smallest magnitude, and what becomes of zeros."""
    found = []
    for kind in TOLD:
        fallen = [case for case in cases if case.outcome.kind == kind]
        grown = sorted((case for case in fallen if case.pattern != ZEROS), key=lambda case: case.magnitude)
        told = [*grown[:1], *(case for case in fallen if case.pattern == ZEROS)]
        found += [
            {"what": kind, "from": case.magnitude, "scores": case.pattern, "because": case.outcome.cause}
            for case in told
        ]
    return found


def table(cases: Sequence[Case]) -> list[dict[str, Any]]:
    return [
        {
            "table": stabiliser.table,
            "stabiliser": name,
            "dtype": str(dtype).removeprefix("torch."),
            "hidden": mask,
            "failures": failures([c for c in cases if (c.stabiliser, c.dtype, c.mask) == (name, dtype, mask)]),
        }
        for name, stabiliser in STABILISERS.items()
        for dtype in DTYPES
        for mask in MASKS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/stabilisers.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = table(survey())
    print(f"{'stabiliser':<27}{'precision':<10}{'hidden by':<11}what happens, from which |score|, because of what")
    for row in rows:
        told = [
            f"{TOLD[one['what']]} from {one['from']:g} ({one['scores']}): {one['because']}" for one in row["failures"]
        ]
        print(f"{row['stabiliser']:<27}{row['dtype']:<10}{row['hidden']:<11}{'; '.join(told) or 'fine throughout'}")
    report = {
        "what": "the stabilisers of the paper's Tables 4 and 7 by their naive formulas: first failures",
        "made": provenance(),
        "torch": torch.__version__,
        "settings": {"keys": KEYS, "magnitudes": MAGNITUDES, "patterns": list(PATTERNS), "device": "cpu"},
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.output, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
