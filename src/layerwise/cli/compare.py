"""`layerwise compare`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import yaml

from layerwise.cli.console import output
from layerwise.cli.parser import Parser, tokens_of
from layerwise.errors import InputError
from layerwise.report.comparison import Summary, markdown, table
from layerwise.report.curves import draw_blocks, draw_runs
from layerwise.runs.files import claim_numbered, write_atomically
from layerwise.runs.run import Run


def main(arguments: list[str]) -> None:
    """A table of several runs in the terminal; their curves, and those of every block, as PNG and
    SVG in a new folder."""
    parser = Parser(prog="layerwise compare", description=main.__doc__)
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument(
        "--out", type=str, default="experiments", help="where the new folder comparison-N goes"
    )
    found = parser.read(tokens_of(arguments, positional=True))
    runs = [Run.open(path) for path in found["runs"]]
    summaries = []
    for run in runs:
        with run.readable():
            summaries.append(Summary.of(run))
    names = [summary.run for summary in summaries]
    labels = names if len(set(names)) == len(names) else [str(run.path) for run in runs]
    metrics = {label: run.metrics() for label, run in zip(labels, runs, strict=True)}
    root = Path(found["out"])
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = claim_numbered(root, "comparison")

        def write(name: str, content: bytes) -> None:
            write_atomically(folder / name, content)

        write("table.md", markdown(summaries).encode())
        write(
            "table.yaml", yaml.safe_dump([asdict(s) for s in summaries], sort_keys=False).encode()
        )
        draw_runs(metrics, write)
        draw_blocks(metrics, write)
    except OSError as error:
        raise InputError(f"--out {root}: cannot be written: {error.strerror}") from error
    output.print(table(summaries))
    output.print(
        f"{folder}: table.md, curves.png, curves.svg, blocks.png, blocks.svg", soft_wrap=True
    )
