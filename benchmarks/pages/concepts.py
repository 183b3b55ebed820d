"""The pictures of docs/concepts.md: what a block learns from, and who waits for whom."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

BLOCKS = 4
FORWARD, BACKWARD, HEAD = "#0072B2", "#D55E00", "#009E73"  # Okabe & Ito


def pictures(write: Callable[[str, bytes], None]) -> None:
    """Draw both; `write` writes a file from its name and content."""
    for name, figure in (("concepts-blocks", _blocks()), ("concepts-time", _time())):
        content = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "layerwise"}):
            figure.savefig(content, format="svg", metadata={"Date": None})
        write(f"pictures/{name}.svg", content.getvalue())


def _box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 1.0) -> None:
    shape = "round,pad=0,rounding_size=0.08"
    box = FancyBboxPatch((x - width / 2, y - 0.22), width, 0.44, boxstyle=shape, linewidth=1.2)
    box.set(edgecolor=colour, facecolor=colour + "22")
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0
) -> None:
    curve = f"arc3,rad={bend}"
    arrow = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=11, connectionstyle=curve, shrinkA=0, shrinkB=0
    )
    arrow.set(linewidth=1.4, color=colour)
    axes.add_patch(arrow)


def _blocks() -> Figure:
    """Left to right the same blocks; above backpropagation, below a local rule."""
    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1, 1.6))
    for axes in (above, below):
        axes.set_axis_off()
        axes.set_xlim(-1.5, 1.55 * BLOCKS + 1.0)
        axes.text(-1.35, 0, "input", ha="center", va="center", fontsize=9)
        for k in range(BLOCKS):
            x = 1.55 * k
            _box(axes, x, 0, f"block {k + 1}", FORWARD)
            _arrow(axes, (x - (1.05 if k else 1.0), 0), (x - 0.5, 0), FORWARD)
        end = 1.55 * (BLOCKS - 1)
        _arrow(axes, (end + 0.5, 0), (end + 1.05, 0), FORWARD)
    above.set_title("Backpropagation: one loss, whose gradient passes all blocks", fontsize=10)
    above.set_ylim(-0.95, 0.45)
    _box(above, end + 1.5, 0, "loss", BACKWARD, 0.9)
    for k in range(BLOCKS):
        x = 1.55 * (k + 1) - (0.05 if k == BLOCKS - 1 else 0)
        _arrow(above, (x, -0.28), (x - 1.5, -0.28), BACKWARD, -0.22)
    above.text(end / 2 + 0.7, -0.8, "gradient", ha="center", fontsize=9, color=BACKWARD)
    title = "A local rule: each block has a head and a loss; no gradient passes between blocks"
    below.set_title(title, fontsize=10)
    below.set_ylim(-0.75, 2.35)
    for k in range(BLOCKS):
        x = 1.55 * k
        last = k == BLOCKS - 1
        _arrow(below, (x - 0.12, 0.22), (x - 0.12, 1.88 if last else 0.73), FORWARD)
        _arrow(below, (x + 0.12, 1.88 if last else 0.73), (x + 0.12, 0.22), BACKWARD)
        if not last:
            _box(below, x, 0.95, "head", HEAD, 0.8)
            _arrow(below, (x - 0.12, 1.17), (x - 0.12, 1.88), FORWARD)
            _arrow(below, (x + 0.12, 1.88), (x + 0.12, 1.17), BACKWARD)
            below.plot([x + 0.75, x + 0.82], [-0.17, 0.17], color=BACKWARD, linewidth=2)
        _box(below, x, 2.1, "loss", BACKWARD, 0.8)
    below.text(0.78, -0.5, "no gradient", ha="center", fontsize=9, color=BACKWARD)
    below.text(end + 1.12, 0, "class scores", va="center", fontsize=9)
    return figure


def _time() -> Figure:
    """When a block runs forward and backward: one row per block, a unit of time per cell."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_title("Backpropagation: block 1 waits for all others", fontsize=10)
    right.set_title("A local rule, each block in a process of its own", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("time, in passes of one block", fontsize=9)
        axes.set_xlim(0, 2 * BLOCKS + 2)
        axes.set_yticks(range(BLOCKS), [f"block {k + 1}" for k in range(BLOCKS)], fontsize=9)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)

    def cell(axes: Axes, start: int, k: int, colour: str, batch: int) -> None:
        axes.barh(k, 1, left=start, color=colour, edgecolor="white", height=0.75)
        axes.text(start + 0.5, k, f"{batch}", color="white", ha="center", va="center", fontsize=9)

    for k in range(BLOCKS):
        cell(left, k, k, FORWARD, 1)
        cell(left, 2 * BLOCKS - 1 - k, k, BACKWARD, 1)
        if k < 2:
            cell(left, 2 * BLOCKS + k, k, FORWARD, 2)
        for batch in range(BLOCKS + 1):
            start = k + 2 * batch
            if start + 2 <= 2 * BLOCKS + 2:
                cell(right, start, k, FORWARD, batch + 1)
                cell(right, start + 1, k, BACKWARD, batch + 1)
    for colour, name in ((FORWARD, "forward"), (BACKWARD, "backward and update")):
        left.barh(0, 0, color=colour, label=f"{name} (the number is the batch)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure
