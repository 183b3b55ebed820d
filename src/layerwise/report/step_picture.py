"""One network's ways to make a step: bytes against time, with the front of each family."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from matplotlib.figure import Figure

from layerwise.costs import StepTable

COLORS = ("tab:blue", "tab:orange", "tab:green")


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points for which no other one is at most as large in both numbers, by the first."""
    kept: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def draw_steps(table: StepTable, path: str | Path | BinaryIO) -> None:
    """Draw a comparison of steps, as ratios to its first contender.

    Args:
        table: its contenders have families.
        path: the PNG file to write.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    numbers: list[str] = []
    families = list(dict.fromkeys(c.family for c in table.contenders))
    for family, color in zip(families, COLORS, strict=False):
        points, whole = [], []  # all, and those that train all weights in a step
        for contender in table.contenders:
            if contender.family != family:
                continue
            ratio = contender.peak.bytes / table.contenders[0].peak.bytes
            points.append((ratio, statistics.median(table.time_ratios(contender))))
            parts = "state of" in contender.name
            if not parts:
                whole.append(points[-1])
            axes.plot(*points[-1], "o", color=color, markerfacecolor="none" if parts else color)
            numbers.append(f"{len(numbers) + 1} {contender.name}")
            axes.annotate(
                str(len(numbers)), points[-1], (3, 3), textcoords="offset points", fontsize=8
            )
        axes.step(*zip(*front(whole), strict=True), where="post", color=color, label=family)
    axes.set(
        xscale="log",
        xlabel="memory of a step / backpropagation's (parameters and batch not counted)",
        ylabel="time of a step / backpropagation's",
        title=f"{table.title}, batch {'x'.join(map(str, table.batch))}",
    )
    ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if t > axes.get_xlim()[0]]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(title="front of")
    numbers.append("hollow: a step trains a part of the weights")
    figure.text(1.01, 0.5, "\n".join(numbers), fontsize=8, va="center")
    figure.savefig(path, dpi=110, bbox_inches="tight")
