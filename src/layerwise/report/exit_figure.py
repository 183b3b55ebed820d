"""Accuracy over cost of a network that decides at which exit a sample leaves, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from layerwise.report.curves import COLOURS

Row = Mapping[str, Any]


def draw_exits(
    curve: Sequence[Row], marked: Sequence[Row], fixed: Sequence[Row], names: Sequence[str], of: str
) -> bytes:
    """Draw accuracy over FLOPs: of the deciding network, and of networks that end at an exit.

    Args:
        curve: `threshold`, `accuracy` and `flops` of many thresholds, in their order.
        marked: the same of the thresholds that are named in the figure.
        fixed: `accuracy` and `flops` of the network up to each exit.
        names: of the exits' blocks.
        of: what has a label, "image" or "token".

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()

    def points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
        return [row["flops"] / 1e6 for row in rows], [100 * row["accuracy"] for row in rows]

    axes.plot(*points(curve), color=COLOURS[0], label="leaves at the first exit that is sure")
    axes.plot(*points(marked), "o", color=COLOURS[0], markersize=4)
    axes.plot(*points(fixed), "s", color=COLOURS[1], markersize=6, label="always the same exit")
    most, named = max(row["flops"] for row in (*curve, *fixed)) / 1e6, -1.0
    for row, x, y in zip(marked, *points(marked), strict=True):
        if x - named > 0.04 * most:  # otherwise its name would be on another one
            axes.annotate(f"{row['threshold']:g}", (x, y), (3, -10), **_text(COLOURS[0]))
            named = x
    for name, x, y in zip(names, *points(fixed), strict=True):
        axes.annotate(name, (x, y), (5, 5), **_text(COLOURS[1]))
    axes.set_xlabel(f"MFLOPs per {of}", fontsize=9)
    axes.set_ylabel("accuracy, %", fontsize=9)
    axes.margins(0.08)
    axes.set_xlim(0, 1.15 * most)
    low, high = axes.get_ylim()
    room = max(0, 1 - (high - low)) / 2  # a point at least: a few images are no difference
    axes.set_ylim(low - room, high + room)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _text(colour: str) -> dict[str, Any]:
    return {"textcoords": "offset points", "fontsize": 7.5, "color": colour}
