"""What the paper says, beside what is measured: ``sparq paper``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from sparq.commands.arguments import add_command, add_model, add_settings, count, positive, print_json

if TYPE_CHECKING:
    from sparq.paper.printed import Improvement, Other, Printed

_MARK = "≠"  # behind a printed drop that does not follow from its row


def add_paper(made: Any) -> None:
    """Declare the parts of ``sparq paper``."""
    text = "What the paper says, beside what is measured"
    command = made.add_parser("paper", help=text, description=text)
    parts = command.add_subparsers(required=True, dest="part", metavar="PART")
    add_command(parts, "list", list_tables, "Name the paper's tables")
    table = add_command(parts, "show", show_table, "Show a table as it is printed, its drops recomputed")
    table.add_argument("table", help="its name, such as 1 or G.1")
    text = "Measure a table or a figure, or all, and show it beside what is printed"
    run = add_command(parts, "run", run_tables, text, resumes=True)
    run.add_argument("table", help="1 to 11, G.1, figure3, figure4, or all")
    run.add_argument("--scale", default="demo", help="at which size: the name of a scale that ships, or a YAML file")
    run.add_argument("--seeds", type=positive, default=1, help="models of every cell; mean and deviation are shown")
    run.add_argument("--ray", metavar="ADDRESS", help="do it on a Ray cluster ('local' for this machine)")
    add_settings(run, "every model, such as adaptation.steps=50")
    text = "Theorem C.1 at work on random models, and the norms of proposition C.1 in a SpeechLM"
    theory = add_command(parts, "theory", show_theory, text)
    theory.add_argument("--before", help="the SpeechLM before it was adapted, for the norms of what changed")
    theory.add_argument("--length", type=positive, default=256, help="pieces in a sequence (default 256)")
    theory.add_argument("--sequences", type=positive, default=4, help="that the model writes, of text and of speech")
    theory.add_argument("--seed", type=count, default=0, help="of the models, and of what the SpeechLM writes")
    add_model(theory)


def list_tables(given: argparse.Namespace) -> None:
    """Name the paper's tables."""
    from sparq.paper.printed import TITLES, other_table, scores_table

    if given.json:
        print_json(TITLES)
        return
    for name, title in TITLES.items():
        wrong = sum(row.follows is False for row in scores_table(name)) if not other_table(name) else 0
        print(f"{name:5}{title}" + (f" ({wrong} printed drops do not follow from their rows)" if wrong else ""))


def show_table(given: argparse.Namespace) -> None:
    """Show a table as it is printed, with its drops recomputed."""
    from sparq.paper.printed import TITLES, improvements, other_table, scores_table

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
        print_json(told)
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


def run_tables(given: argparse.Namespace) -> None:
    """Measure tables of the paper, and show each beside what is printed."""
    from sparq.paper.scale import load_scale

    scale = load_scale(given.scale)  # before what takes seconds to import

    from sparq.making import Watcher
    from sparq.paper.experiment import on_ray
    from sparq.paper.reproduction import TABLES, Order, reproduce
    from sparq.progress import Terminal

    found = []
    for table in TABLES if given.table == "all" else (given.table,):
        with Terminal(quiet=given.json) as terminal:
            watcher = Watcher(terminal.stage, terminal.training, terminal.note)
            engine = on_ray(given.ray, watcher) if given.ray else None
            order = Order(scale, given.seeds, tuple(given.settings), watcher, engine)
            found.append(reproduce(table, order))
        if not given.json:
            _print_measured(found[-1])
    if given.json:
        print_json(found if given.table == "all" else found[0])


def _print_measured(kept: dict[str, Any]) -> None:
    from sparq.paper.layout import as_text, grids, title

    seeds = f"{kept['seeds']} seed{'s' if kept['seeds'] > 1 else ''}"
    print(f"\n{title(kept)}; scale {kept['scale']}, {seeds}")
    for caption, grid in grids(kept):
        print(f"\n{caption}" if caption else "")
        print(as_text(grid))


def show_theory(given: argparse.Namespace) -> None:
    """Show appendix C: the theorem at work, and the norms of a SpeechLM."""
    import sparq
    from sparq.paper.demonstration import demonstrate
    from sparq.paper.norms import adaptation_norms, bound, own_sequences

    lm = sparq.load(given.model)
    before = sparq.load(given.before).model if given.before else None
    sequences = own_sequences(lm.model, lm.vocabulary, given.length, given.sequences, given.seed)
    layers = adaptation_norms(lm.model, sequences, before)
    shown = demonstrate(seed=given.seed)
    if given.json:
        norms = {"length": given.length, "bound": bound(given.length), "layers": [*map(dataclasses.asdict, layers)]}
        print_json({"theorem": dataclasses.asdict(shown), "proposition": norms})
        return
    print(f"Theorem C.1, random models: gaps {', '.join(map(str, shown.gaps))}, sufficient rank {shown.sufficient}")
    print(f"{'rank of the adapters':28}{'largest difference to the target':>34}")
    for rank, deviation in shown.deviations.items():
        print(f"{rank:<28}{deviation:34.1e}")
    print(
        f"\nProposition C.1, {len(sequences)} sequences of {given.length} pieces: √(ln L) = {bound(given.length):.2f}"
    )
    print(f"{'largest magnitudes':28}{'keys':>10}{'queries':>10}{'adapters':>10}")
    for layer in layers:
        adapters = "" if layer.adapters is None else f"{layer.adapters:.2f}"
        print(f"{layer.layer:28}{layer.keys:10.2f}{layer.queries:10.2f}{adapters:>10}")
