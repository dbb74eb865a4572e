"""What the parts of ``sparq paper`` do: read what was given, call one function, print."""

from __future__ import annotations

import argparse
import dataclasses
import json

from sparq.paper.printed import TITLES, Improvement, Other, Printed, improvements, other_table, scores_table

_MARK = "≠"  # behind a printed drop that does not follow from its row


def list_tables(given: argparse.Namespace) -> None:
    """Name the paper's tables."""
    if given.json:
        print(json.dumps(TITLES, indent=1))
        return
    for name, title in TITLES.items():
        wrong = sum(row.follows is False for row in scores_table(name)) if not other_table(name) else 0
        print(f"{name:5}{title}" + (f" ({wrong} printed drops do not follow from their rows)" if wrong else ""))


def show_table(given: argparse.Namespace) -> None:
    """Show a table as it is printed, with its drops recomputed."""
    others = other_table(given.table)
    rows = [] if others else scores_table(given.table)
    better = improvements(rows)
    if given.json:
        told = {
            "table": given.table,
            "printed": [dataclasses.asdict(row) for row in others or rows],
            "recomputed_drops": [{"percent": row.recomputed, "printed_follows": row.follows} for row in rows],
            "improvements": [dataclasses.asdict(one) for one in better],
        }
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return
    print(f"Table {given.table} of the paper, {TITLES[given.table]}; none of it was measured here\n")
    _print_others(others) if others else _print_scores(rows)
    if better:
        print("\nSpARQ against the ordinary attention, better by so many percent of its drop, and of its scores\n")
        _print_improvements(better)


def _print_others(rows: list[Other]) -> None:
    for row in rows:
        print(f"{row.model:12}{row.attention:10}{row.setting:28}{row.metric:32}{row.value:>10}")


def _print_scores(rows: list[Printed]) -> None:
    heads = ("text ppl", "speech ppl", "ASR WER", "TTS WER", "drop %", "recomputed")
    print(
        f"{'model':10}{'attention':17}{'adaptation':12}{'quantisation':20}{'bits':8}"
        + "".join(f"{h:>12}" for h in heads)
    )
    for row in rows:
        setting = row.setting
        names = (
            f"{setting.model:10}{setting.attention:17}{setting.adaptation:12}{setting.quantisation:20}{setting.bits:8}"
        )
        numbers = [f"{value:.2f}" for value in dataclasses.astuple(row.scores)]
        drop = "" if row.drop is None else f"{row.drop:.2f}" + (_MARK if row.follows is False else " ")
        again = "" if row.recomputed is None else f"{row.recomputed:.2f}"
        print(names + "".join(f"{cell:>12}" for cell in (*numbers, drop, again)))
    if any(row.follows is False for row in rows):
        print(f"\n{_MARK} does not follow from the printed scores, rounding allowed for")


def _print_improvements(rows: list[Improvement]) -> None:
    for row in rows:
        setting = row.setting
        names = f"{setting.model:10}{setting.adaptation:12}{setting.quantisation:20}{setting.bits:8}"
        print(f"{names}{row.of_drops:>12.1f}{row.of_scores:>12.1f}")
