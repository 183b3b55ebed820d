"""Curves of loss and accuracy over epochs, as PNG and SVG."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from layerwise.runs.run import Run

# The same picture is the same file.
matplotlib.rcParams["svg.hashsalt"] = "layerwise"
METADATA: Mapping[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}}

Rows = Sequence[Mapping[str, float | None]]
SPREAD = "spread of "  # before the name of a column: its standard deviation over seeds
Write = Callable[[str, bytes], None]

# Okabe & Ito's colours, which people with colour blindness can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
SPLITS = ("train", "validation", "test")
# A column of metrics.csv -> what its axis is called.
PANELS = {f"{split}_loss": f"{split} loss, nats" for split in SPLITS}
PANELS |= {f"{split}_accuracy": f"{split} accuracy, %" for split in SPLITS}
# The objective of a block may have any unit; the test loss of its predictions is in nats.
BLOCK_PANELS = PANELS | {"train_loss": "train loss of the\nblock's own objective"}


def means(seeds: Sequence[Rows]) -> list[dict[str, float | None]]:
    """Mean and standard deviation over runs that differ in their seed.

    Args:
        seeds: rows of metrics of each run.

    Returns:
        A row for each epoch that all runs have: the mean of every column that they have, and under
        "spread of COLUMN" its sample standard deviation.
    """
    found = []
    for rows in zip(*seeds, strict=False):
        row: dict[str, float | None] = {}
        for column in rows[0]:
            values = [r.get(column) for r in rows]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                row[column] = statistics.mean(known)
                row[f"{SPREAD}{column}"] = statistics.stdev(known)
        found.append(row)
    return found


def draw_runs(runs: Mapping[str, Rows], write: Write) -> None:
    """Draw loss and accuracy of several runs on every split that they have, one colour per run.

    Args:
        runs: each run's label and rows of metrics; those of `means` get a band of one standard
            deviation on both sides.
        write: writes a file, from its name and content.
    """
    every = [row for rows in runs.values() for row in rows]
    splits = [s for s in SPLITS if s != "validation" or _has(every, f"{s}_loss", f"{s}_accuracy")]
    shown = {c: name for c, name in PANELS.items() if c.partition("_")[0] in splits}
    figure = Figure(figsize=(5 * len(splits) + 1, 7.5), layout="constrained")
    grid = figure.subplots(2, len(splits)).flat
    for axes, (column, name) in zip(grid, shown.items(), strict=True):
        for k, (label, rows) in enumerate(runs.items()):
            _line(axes, rows, column, label, COLOURS[k % len(COLOURS)], "-" if k < 8 else "--")
        _finish(axes, name)
        if "loss" in column:
            _from_zero(axes)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save(figure, "curves", write)


def draw_blocks(
    runs: Mapping[str, Rows], write: Write, names: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Draw the same quantities for every block, with one column per run and one colour per block.

    The training loss is that of the block's own objective.

    Args:
        runs: each run's label and rows of metrics.
        write: writes a file, from its name and content.
        names: of each run's blocks, by its label, for the legend.
    """
    runs = {label: rows for label, rows in runs.items() if rows}
    if not runs:
        return
    prefix = "train_loss_block"
    every = [row for rows in runs.values() for row in rows]
    shown = {
        column: name
        for column, name in BLOCK_PANELS.items()
        if not column.startswith("validation")
        or _has(every, *(k for row in every for k in row if k.startswith(f"{column}_block")))
    }
    size = (4.2 * len(runs) + 1.2, 2.6 * len(shown) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(shown), len(runs), squeeze=False, sharex="col", sharey="row")
    for (label, rows), column_axes in zip(runs.items(), grid.T, strict=True):
        blocks = sorted(int(k.removeprefix(prefix)) for k in rows[0] if k.startswith(prefix))
        for axes, (column, name) in zip(column_axes, shown.items(), strict=True):
            for block in blocks:
                colour = matplotlib.colormaps["viridis"](block / max(1, len(blocks) - 1) * 0.9)
                called = block_label(block, (names or {}).get(label))
                _line(axes, rows, f"{column}_block{block}", called, colour, "-")
            _finish(axes, name)
            axes.label_outer()
        column_axes[0].set_title(label, fontsize=10)
        if len(blocks) <= 16:
            column_axes[0].legend(fontsize=7)
    for axes, column in zip(grid, shown, strict=True):
        if "loss" in column:
            _from_zero(axes[0])  # the row shares it
    save(figure, "blocks", write)


def draw_run(run: Run) -> None:
    """Draw the curves of one run into its own folder."""
    runs = {run.path.name: run.metrics()}
    draw_runs(runs, lambda name, content: run.write(f"curves/{name}", content))
    draw_blocks(
        runs,
        lambda name, content: run.write(f"curves/{name}", content),
        {run.path.name: block_names(run)},
    )


def block_names(run: Run) -> list[str]:
    """The names of a run's blocks; empty if they are not known."""
    try:
        return [
            block["name"] for block in json.loads((run.path / "cost.json").read_text())["blocks"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def block_label(block: int, names: Sequence[str] | None) -> str:
    """What a block is called in a legend: number and name, if it has another name than its
    number."""
    name = names[block] if names is not None and block < len(names) else str(block)
    return f"block {block}" if name == str(block) else f"{block} {name}"


def _has(rows: Rows, *columns: str) -> bool:
    return any(row.get(column) is not None for row in rows for column in columns)


def factor_of(column: str) -> int:
    """From a column of metrics.csv to the unit that is shown: accuracies in %, losses in nats."""
    return 100 if "accuracy" in column else 1


def _line(axes: Axes, rows: Rows, column: str, label: str, colour: object, style: str) -> None:
    factor = factor_of(column)
    points = [(r["epoch"], factor * r[column]) for r in rows if r.get(column) is not None]  # type: ignore[operator]
    if not points:  # the block has no objective of its own, or the run has no such split
        return
    marker = "o" if len(points) == 1 else None
    epochs, values = zip(*points, strict=True)
    axes.plot(epochs, values, label=label, color=colour, linestyle=style, marker=marker)
    spreads = [r.get(f"{SPREAD}{column}") for r in rows if r.get(column) is not None]
    if all(spread is not None for spread in spreads):
        pairs = [(v, factor * s) for v, s in zip(values, spreads, strict=True)]  # type: ignore[operator]
        low, high = [v - s for v, s in pairs], [v + s for v, s in pairs]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _finish(axes: Axes, name: str) -> None:
    axes.set_ylabel(name, fontsize=9)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)


def _from_zero(axes: Axes) -> None:
    """Start the axis of a loss at zero; call it after all lines are drawn."""
    axes.set_ylim(bottom=0, auto=True)


def save(figure: Figure, name: str, write: Write) -> None:
    """Write a figure as PNG and SVG."""
    for kind in ("png", "svg"):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=120, metadata=METADATA[kind])
        write(f"{name}.{kind}", content.getvalue())
