"""`layerwise compare`."""

from __future__ import annotations

from pathlib import Path

from layerwise.cli.console import output
from layerwise.cli.interrupts import interrupts_end_at_once
from layerwise.cli.parser import Parser, tokens_of
from layerwise.runs.run import Run


def main(arguments: list[str]) -> None:
    """Compare runs: a table in the terminal; their curves, and those of every block, as PNG and SVG
    in a new folder."""
    parser = Parser(prog="layerwise compare", description=main.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument(
        "--out",
        type=str,
        default="experiments",
        help="folder in which the new folder comparison-N is made",
    )
    found = parser.read(tokens_of(arguments, positional=True))
    runs = [Run.open(path) for path in found["runs"]]
    with interrupts_end_at_once():  # seconds, which neither help nor an error waits for
        from layerwise.report.comparison import table, write_comparison
    folder, summaries = write_comparison(runs, Path(found["out"]))
    output.print(table(summaries))
    output.print(
        f"{folder}: table.md, curves.png, curves.svg, blocks.png, blocks.svg", soft_wrap=True
    )
