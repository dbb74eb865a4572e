"""What several commands answer with."""

from __future__ import annotations

import json

from sparq.commands.arguments import print_json


def test_json_without_finite_numbers_is_still_json(capsys):
    print_json({"a": [1.5, float("nan")], "b": {"c": float("-inf"), "d": "é"}, "e": (1, None, True)})

    def refuse(name):
        raise AssertionError(name)

    told = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert told == {"a": [1.5, None], "b": {"c": None, "d": "é"}, "e": [1, None, True]}
