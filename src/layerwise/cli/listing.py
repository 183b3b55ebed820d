"""`layerwise list`."""

from __future__ import annotations

import itertools

from rich.table import Table
from rich.text import Text

from layerwise import data
from layerwise.cli.console import output
from layerwise.cli.options import RECIPES, recipe_names
from layerwise.cli.parser import one_line
from layerwise.errors import InputError, choices
from layerwise.experiment.registry import KINDS


def main(arguments: list[str]) -> None:
    """List what can be chosen by name: `layerwise list [KIND]`."""
    what = {kind: _things(kind) for kind in KINDS} | {"data": _data(), "recipe": _recipes()}
    if arguments in (["-h"], ["--help"]):
        print(f"usage: layerwise list [{' | '.join(what)}]\n\n{main.__doc__}")
        return
    kinds = [argument.removesuffix("s").replace("dataset", "data") for argument in arguments]
    for kind in kinds:
        if kind not in what:
            raise InputError(f"list {kind}: no such kind; {choices(kind, what)}")
    for kind in kinds or what:
        table = Table(title=kind, title_justify="left", show_header=False, box=None)
        for name, about in what[kind].items():
            table.add_row(name, Text(about))  # brackets in the text are no markup
        output.print(table)
        output.print()


def _things(kind: str) -> dict[str, str]:
    return {name: one_line(thing) for name, thing in sorted(KINDS[kind].items())}


def _data() -> dict[str, str]:
    return dict.fromkeys(data.NAMES, "")


def _recipes() -> dict[str, str]:
    """Each recipe with the comment at its beginning."""
    found = {}
    for name in recipe_names():
        text = (RECIPES / f"{name}.yaml").read_text()
        comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        found[name] = " ".join(line.lstrip("# ") for line in comment)
    return found
