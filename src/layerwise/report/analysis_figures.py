"""Figures of the answers of `layerwise analyze`, as PNG."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from layerwise.report.curves import COLOURS

DASHES = ("-", "--", ":", "-.")

Write = Callable[[str, bytes], None]
Row = Mapping[str, Any]

# A number that `layerwise analyze` has for every block -> title of its panel, factor to its unit.
BY_BLOCK = {
    "probe": ("linear probe: accuracy, %", 100),
    "separability": ("linearly separable, %", 100),
    "reconstruction": ("image: reconstruction loss, nats", 1),
    "label": ("label: information, nats (lower bound)", 1),
    "rank": ("effective rank", 1),
    "knee": ("singular values before the largest drop", 1),
    "norm": ("mean norm of features", 1),
    "strongest": ("strongest correlation of a feature with the label", 1),
    "correlation": ("mean correlation of features with the label", 1),
    "angle": ("angle to backpropagation's gradient, degrees", 1),
    "ratio": ("norm of the gradient / backpropagation's", 1),
    "memorized": ("memorised random labels, %", 100),
}


def draw_blocks(runs: Mapping[str, Sequence[Row]], names: Sequence[str] | None) -> bytes | None:
    """Draw one panel for every number in `BY_BLOCK`, over the blocks, with one line per run.

    Args:
        runs: each run's label and a row of numbers per block; None for a missing number.
        names: of the blocks; None if they differ between runs.

    Returns:
        A PNG file, or None if there is nothing to draw.
    """
    known = [
        key
        for key in BY_BLOCK
        if any(row.get(key) is not None for rows in runs.values() for row in rows)
    ]
    if not known:
        return None
    columns = min(len(known), 3)
    lines = math.ceil(len(known) / columns)
    figure = Figure(figsize=(4.3 * columns, 3.4 * lines + 0.5), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for key, axes in zip(known, grid, strict=False):
        title, factor = BY_BLOCK[key]
        for k, (label, rows) in enumerate(runs.items()):
            points = [(i, factor * r[key]) for i, r in enumerate(rows) if r.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **_style(k))
        _over_blocks(axes, names, max(map(len, runs.values())))
        axes.set_ylabel(textwrap.fill(title, 34), fontsize=9)
        if key == "angle":
            _degrees(axes)
        if key == "ratio":
            _ratios(axes)
        if key == "norm" and all(y > 0 for line in axes.get_lines() for y in line.get_ydata()):
            axes.set_yscale("log")
            _powers(axes)
    for axes in grid[len(known) :]:
        axes.set_axis_off()
    _legend(figure, runs)
    return _png(figure)


def draw_alignment(runs: Mapping[str, Sequence[Row]], names: Sequence[str] | None) -> bytes | None:
    """Draw angle and ratio of norms over the steps, a column per run and a colour per block.

    Args:
        runs: each run's label and rows of alignment.jsonl.
        names: of the blocks; None if they differ between runs.

    Returns:
        A PNG file, or None if there is nothing to draw.
    """
    runs = {label: rows for label, rows in runs.items() if rows}
    if not runs:
        return None
    figure = Figure(figsize=(4.4 * len(runs) + 1.4, 6.4), layout="constrained")
    grid = figure.subplots(2, len(runs), squeeze=False, sharex="col", sharey="row")
    most = max(len(rows[0]["angle"]) for rows in runs.values())
    for (label, rows), (angles, ratios) in zip(runs.items(), grid.T, strict=True):
        for block in range(len(rows[0]["angle"])):
            style = {"color": _by_depth(block, most), "label": _name(block, names)}
            for axes, key in ((angles, "angle"), (ratios, "ratio")):
                _over_steps(axes, [(r["step"], r[key][block]) for r in rows], style)
        angles.set_title(label, fontsize=10)
        ratios.set_xlabel("step", fontsize=9)
    for angles, ratios in grid.T:  # after all lines are drawn
        _degrees(angles)
        _ratios(ratios)
    grid[0][0].set_ylabel("angle to backpropagation's gradient, degrees", fontsize=9)
    grid[1][0].set_ylabel("norm of the gradient / backpropagation's", fontsize=9)
    if most <= 16:
        handles = _handles(grid[0])
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    return _png(figure)


def draw_feedback(runs: Mapping[str, Sequence[Row]]) -> bytes | None:
    """Draw the angles of feedback matrices, layer by layer, with one panel per run.

    Args:
        runs: each run's label and a row for every layer; empty for a rule without such matrices.

    Returns:
        A PNG file, or None if there is nothing to draw.
    """
    runs = {label: rows for label, rows in runs.items() if rows}
    if not runs:
        return None
    most = max(map(len, runs.values()))
    figure = Figure(figsize=(5.4 * len(runs), 0.34 * most + 1.6), layout="constrained")
    grid = figure.subplots(1, len(runs), squeeze=False)[0]
    marks = {
        "to_weight": ("to the weight", "o"),
        "to_pseudo_inverse": ("to its pseudo-inverse", "s"),
    }
    for (label, rows), axes in zip(runs.items(), grid, strict=True):
        for k, (key, (about, marker)) in enumerate(marks.items()):
            points = [(r[key], i) for i, r in enumerate(rows) if r[key] is not None]
            if points:
                # Both marks stay visible if they coincide.
                axes.plot(
                    *zip(*points, strict=True),
                    marker,
                    color=COLOURS[k],
                    label=about,
                    markersize=6 + 3 * k,
                    fillstyle="none" if k else "full",
                )
        axes.axvline(90, color="0.6", linewidth=1, linestyle=":")
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-2, max(95, *(p for r in rows for k in marks if (p := r[k]) is not None)) + 2)
        axes.set_xlabel("angle of the feedback matrix, degrees", fontsize=9)
        axes.set_title(label, fontsize=10)
        axes.grid(axis="x", alpha=0.25)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return _png(figure)


def draw_feedback_training(runs: Mapping[str, Sequence[Row]]) -> bytes | None:
    """Draw the angle of every feedback matrix to its weight over the steps.

    There is one panel per run and one colour per layer.

    Args:
        runs: each run's label and rows of alignment.jsonl; rows without `feedback` are left out.

    Returns:
        A PNG file, or None if there is nothing to draw.
    """
    seen = {label: [row for row in rows if row.get("feedback")] for label, rows in runs.items()}
    seen = {label: rows for label, rows in seen.items() if rows}
    if not seen:
        return None
    layers = list(dict.fromkeys(name for rows in seen.values() for name in rows[0]["feedback"]))
    figure = Figure(figsize=(4.4 * len(seen) + 2.2, 4.2), layout="constrained")
    grid = figure.subplots(1, len(seen), squeeze=False, sharey="row")[0]
    for (label, rows), axes in zip(seen.items(), grid, strict=True):
        for i, name in enumerate(layers):
            # Neighbouring layers have similar colours, so their line styles differ.
            style = {"color": _by_depth(i, len(layers)), "linestyle": DASHES[i % len(DASHES)]}
            points = [(r["step"], r["feedback"].get(name)) for r in rows]
            _over_steps(axes, points, {"label": name, **style})
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
    known = [
        a for rows in seen.values() for r in rows for a in r["feedback"].values() if a is not None
    ]
    for axes in grid:  # after all lines are drawn
        _degrees(axes, 15 * math.floor(min([75, *known]) / 15))
    grid[0].set_ylabel("angle of the feedback matrix to the weight, degrees", fontsize=9)
    if len(layers) <= 24:
        handles = _handles(grid)
        figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)
    return _png(figure)


def draw_cka(tables: Sequence[Row]) -> bytes | None:
    """Draw heat maps of CKA, with one panel for each pair of runs.

    Args:
        tables: for each pair, the runs' labels `rows` and `columns`, their blocks' names
            `row_names` and `column_names`, and `values`, (rows, columns), None for not a number.

    Returns:
        A PNG file, or None if there is nothing to draw.
    """
    if not tables:
        return None
    columns = min(len(tables), 3)
    lines = math.ceil(len(tables) / columns)
    figure = Figure(figsize=(4.4 * columns + 0.8, 4.1 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    image = None
    for table, axes in zip(tables, grid.flat, strict=False):
        values = [[math.nan if v is None else v for v in row] for row in table["values"]]
        image = axes.imshow(values, cmap="magma", vmin=0, vmax=1, origin="lower")
        across, up = _ticks(table["column_names"]), _ticks(table["row_names"])
        axes.set_xticks(*across, fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(*up, fontsize=8)
        axes.set_xlabel(table["columns"], fontsize=9)
        axes.set_ylabel(table["rows"], fontsize=9)
        if len(values) * len(values[0]) <= 64:
            for i, row in enumerate(values):
                for j, value in enumerate(row):
                    dark = math.isnan(value) or value < 0.6
                    axes.text(
                        j,
                        i,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if dark else "black",
                    )
    for axes in list(grid.flat)[len(tables) :]:
        axes.set_axis_off()
    assert image is not None
    figure.get_layout_engine().set(wspace=0.06, hspace=0.06)  # type: ignore[union-attr]
    bar = figure.colorbar(image, ax=grid, shrink=0.8)
    bar.set_label("linear CKA", fontsize=9)
    return _png(figure)


def draw_difficulty(runs: Mapping[str, Row | None], epochs: Mapping[str, int]) -> bytes | None:
    """Draw how often training samples were predicted correctly, and how often they were forgotten.

    Args:
        runs: each run's label, and its lists `consistency` and `forgotten` over the samples; None
            if a run has none.
        epochs: number of epochs of each run that has these lists.

    Returns:
        A PNG file, or None if there is nothing to draw.
    """
    if not any(runs.values()):
        return None
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (label, found) in enumerate(runs.items()):
        if found is None:
            continue  # every run keeps its colour in all figures
        count = len(found["consistency"])
        times = [round(share * epochs[label]) for share in found["consistency"]]
        for axes, of_each, most in (
            (left, times, epochs[label]),
            (right, found["forgotten"], max(found["forgotten"])),
        ):
            shares = [100 * of_each.count(n) / count for n in range(most + 1)]
            axes.plot(range(most + 1), shares, label=label, **_style(k))
    left.set_xlabel("epochs after which a training image was predicted correctly", fontsize=9)
    right.set_xlabel("number of times a training image was forgotten", fontsize=9)
    for axes in (left, right):
        axes.set_ylabel("training images, %", fontsize=9)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, 110)
        axes.yaxis.set_major_locator(FixedLocator([0, 1, 2, 5, 10, 20, 50, 100]))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
    _legend(figure, runs)
    return _png(figure)


def draw_label_curves(runs: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """Draw accuracy over the share of labels, a line per run, as a PNG file.

    Args:
        runs: each run's label, and its share of labels and accuracy, both 0 to 1, in order.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for k, (label, points) in enumerate(runs.items()):
        axes.plot(
            *([100 * v for v in of] for of in zip(*points, strict=True)), label=label, **_style(k)
        )
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.set_xlabel("training images with a label, %", fontsize=9)
    axes.set_ylabel("test accuracy, %", fontsize=9)
    axes.grid(alpha=0.25)
    _legend(figure, runs)
    return _png(figure)


def _ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Positions and labels of the ticks on an axis of blocks; at most 16 blocks are named."""
    shown = list(range(0, len(names), max(1, math.ceil(len(names) / 16))))
    return shown, [_name(i, names) for i in shown]


def _style(k: int) -> dict[str, Any]:
    return {
        "color": COLOURS[k % len(COLOURS)],
        "linestyle": "-" if k < len(COLOURS) else "--",
        "marker": "o",
        "markersize": 4,
    }


def _by_depth(i: int, count: int) -> Any:
    """The colour of block or layer `i` of `count`."""
    return matplotlib.colormaps["viridis"](i / max(1, count - 1) * 0.9)


def _over_steps(
    axes: Axes, points: Sequence[tuple[int, float | None]], style: Mapping[str, Any]
) -> None:
    """Draw a line of (step, value) without missing values."""
    known = [(step, value) for step, value in points if value is not None]
    if known:
        marker = "o" if len(known) == 1 else None
        axes.plot(*zip(*known, strict=True), marker=marker, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(alpha=0.25)


def _over_blocks(axes: Axes, names: Sequence[str] | None, count: int) -> None:
    axes.grid(alpha=0.25)
    axes.set_xlim(-0.3, count - 0.7)
    if names is not None and count <= 6:
        axes.set_xticks(range(count), [_name(i, names) for i in range(count)], fontsize=8)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block", fontsize=9)


def _degrees(axes: Axes, least: int = 0) -> None:
    """Scale an axis of angles from `least` degrees, with a line at 90, orthogonal directions."""
    axes.axhline(90, color="black", linewidth=0.8, linestyle=":")
    axes.set_ylim(least - 3, max(95, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(FixedLocator(range(least, 181, 15 if least < 45 else 5)))


def _ratios(axes: Axes) -> None:
    """Scale an axis of ratios logarithmically, with a line at 1."""
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), max(high, 2))
    _powers(axes)


def _powers(axes: Axes) -> None:
    """Label powers of ten as plain numbers, and 2 and 5 between them if there is room."""
    low, high = axes.get_ylim()
    _plain(axes.yaxis, (1, 2, 5) if high < 1000 * low else (1,))


def _plain(axis: Axis, subs: Sequence[int] = (1, 2, 5)) -> None:
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _name(block: int, names: Sequence[str] | None) -> str:
    return f"{block}" if names is None or names[block] == f"{block}" else f"{block} {names[block]}"


def _handles(panels: Iterable[Axes]) -> dict[str, Any]:
    """One line for every label, for the legend."""
    handles: dict[str, Any] = {}
    for axes in panels:
        lines, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    return handles


def _legend(figure: Figure, runs: Mapping[str, object]) -> None:
    handles = _handles(figure.axes)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
