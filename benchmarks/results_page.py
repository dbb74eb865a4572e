"""Write docs/results.md anew: what was measured of the paper's tables, from what is kept under results/paper/.

    sparq paper run 6 --scale demo && cp runs/paper-demo/table-6.json results/paper/demo/  # and the figures' .svg
    python benchmarks/results_page.py

What is said in words lies in results/paper/findings.md, and stands in front of the tables.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from sparq.paper.layout import as_markdown, grids, title
from sparq.paper.reproduction import TABLES

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "results" / "paper"
HEAD = """# The paper's tables, measured

Printed numbers and measured ones never share a column. The ordinary attention is sink `none`; SpARQ is measured twice,
as max-shift read literally (`max`) and as softmax_1 (`zero`). The average drop is relative to the fully fine-tuned
model of the same attention, and ≠ marks printed drops that do not follow from their own row. Quantisation is
simulated. Every table is made by `sparq paper run TABLE --scale SCALE`, which goes on where it was stopped.
"""


def section(kept: dict[str, Any], file: Path) -> str:
    """Write one table."""
    made, settings = kept["made"], "".join(f" {one}" for one in kept["settings"])
    seeds = f"{kept['seeds']} seed" + ("s" if kept["seeds"] > 1 else "")
    about = (
        f"`sparq paper run {kept['table']} --scale {kept['scale']}{settings}`, {seeds}; commit {made['commit']}, "
        f"{made['date'][:10]}, {made['machine']} ([JSON](../{file.relative_to(ROOT)}))."
    )
    parts = [f"### {title(kept)}", textwrap.fill(about, 120)]
    for caption, grid in grids(kept):
        parts += [f"{caption[:1].upper()}{caption[1:]}:"] if caption else []
        parts.append(as_markdown(grid).rstrip())
    pictures = sorted(file.parent.glob(f"{file.stem}*.svg"))
    parts += [f"![{title(kept)}: {path.stem}](../{path.relative_to(ROOT)})" for path in pictures]
    return "\n\n".join(parts)


def main() -> None:
    parts = [HEAD.rstrip(), (KEPT / "findings.md").read_text(encoding="utf-8").strip()]
    for folder in sorted(path for path in KEPT.iterdir() if path.is_dir()):
        files = {json.loads(path.read_text(encoding="utf-8"))["table"]: path for path in folder.glob("*.json")}
        described = False
        for table in TABLES:
            if table not in files:
                continue
            kept = json.loads(files[table].read_text(encoding="utf-8"))
            if not described:
                parts += [f"## Scale `{kept['scale']}`", textwrap.fill(kept["description"], 120)]
                described = True
            parts.append(section(kept, files[table]))
    (ROOT / "docs" / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
