"""The models that travel in packages and those that ship: ``sparq assets``."""

from __future__ import annotations

import argparse
from typing import Any

from sparq.commands.arguments import add_command, print_json
from sparq.errors import UserError


def add_assets(made: Any) -> None:
    """Declare ``sparq assets``."""
    add_command(made, "assets", assets, "List the models that travel in packages and those that ship")


def assets(given: argparse.Namespace) -> None:
    """List models."""
    from sparq.assets import embedded_names, packaged, shipped, shipped_names

    found = []
    for kind, names, find in (("embedded", embedded_names(), packaged), ("shipped", shipped_names(), shipped)):
        for name in names:
            try:
                found.append({"kind": kind, "name": name, "path": str(find(name)), "missing": None})
            except UserError as error:
                found.append({"kind": kind, "name": name, "path": None, "missing": str(error)})
    if given.json:
        print_json(found)
        return
    for asset in found:
        print(f"{asset['kind']:10}{asset['name']:28}{asset['path'] or asset['missing']}")
