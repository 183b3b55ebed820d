"""`layerwise list`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rich.table import Table
from rich.text import Text

from layerwise.cli.recipes import recipes
from layerwise.errors import InputError, choices
from layerwise.experiment.catalog import data_sets, things
from layerwise.experiment.kinds import KINDS
from layerwise.report.console import output


def main(arguments: list[str]) -> None:
    """List what can be chosen by name: `layerwise list [KIND]`."""
    what: dict[str, Callable[[], dict[str, str]]] = {
        **{kind: partial(things, kind) for kind in (*KINDS, "criterion")},
        "data": lambda: dict.fromkeys(data_sets(), ""),
        "recipe": recipes,
    }
    if arguments in (["-h"], ["--help"]):
        print(f"usage: layerwise list [{' | '.join(what)}]\n\n{main.__doc__}")
        return
    kinds = [argument.removesuffix("s").replace("dataset", "data") for argument in arguments]
    for kind in kinds:
        if kind not in what:
            raise InputError(f"list {kind}: no such kind; {choices(kind, what)}")
    for kind in kinds or what:
        table = Table(title=kind, title_justify="left", show_header=False, box=None)
        for name, about in what[kind]().items():
            table.add_row(name, Text(about))  # brackets in the text are no markup
        output.print(table)
        output.print()
