"""`layerwise compare`."""

from __future__ import annotations

from pathlib import Path

from layerwise.cli.interrupts import interrupts_end_at_once
from layerwise.cli.parser import Parser, tokens_of
from layerwise.report.console import output
from layerwise.runs.run import Run


def main(arguments: list[str]) -> None:
    """Compare runs: a table in the terminal; their curves, and those of every block, as PNG and SVG
    in a new folder. With published curves, also the distance to them at equal steps."""
    parser = Parser(prog="layerwise compare", description=main.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument(
        "--out",
        type=str,
        default="experiments",
        help="folder in which the new folder comparison-N is made",
    )
    parser.add_argument(
        "--reference",
        type=str | None,
        default=None,
        help="published curves: a JSON file, or one of the library's: original-1, original-2, "
        "original-3; a run is compared with the series of its name",
    )
    parser.add_argument(
        "--html",
        type=bool,
        default=False,
        help="also write report.html, one self-contained page with table, curves, blocks, options "
        "that differ and pictures; also of a single run",
    )
    found = parser.read(tokens_of(arguments, positional=True))
    runs = [Run.open(path) for path in found["runs"]]
    with interrupts_end_at_once():  # seconds, which neither help nor an error waits for
        from layerwise.report.comparison import distance_table, table, write_comparison
        from layerwise.report.reference import NONE_NEAR, Reference
    named = found["reference"]
    reference = None if named is None else Reference.read(named)
    folder, summaries, distances = write_comparison(
        runs, Path(found["out"]), reference, html=found["html"]
    )
    output.print(table(summaries))
    files = ["table.md", "curves.png", "curves.svg", "blocks.png", "blocks.svg"]
    if reference is not None:
        title = f"{reference.title}, at equal steps"
        none_near = f"--reference {named}: {NONE_NEAR}"
        output.print(distance_table(distances, title) if distances else none_near, soft_wrap=True)
        files += ["reference.md", "reference.png", "reference.svg"]
    files += ["report.html"] if found["html"] else []
    written = [name for name in files if (folder / name).exists()]
    output.print(f"{folder}: {', '.join(written)}", soft_wrap=True)
