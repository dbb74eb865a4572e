"""``sparq run`` on a run that is finished."""

from __future__ import annotations

import json


def test_run_as_json_and_as_a_table(sparq, tiny_run):
    code, out, err = sparq("run", "--json", tiny_run.recipe)
    assert (code, err) == (0, "")
    assert json.loads(out) == {"rows": tiny_run.rows, "report": str(tiny_run.report)}
