"""Speed of stages against their number, for each way to train in stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from matplotlib.figure import Figure


def draw_speeds(
    speeds: Mapping[int, Mapping[str, float]], title: str, path: str | Path | BinaryIO
) -> None:
    """Draw how many times as fast as one process each way is.

    Args:
        speeds: by number of stages, by name.
        title: of the picture.
        path: the PNG file to write.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    counts = list(speeds)
    axes.plot(counts, counts, ":", color="grey", label="number of stages")
    for i, name in enumerate(dict.fromkeys(n for of in speeds.values() for n in of)):
        found = {n: of[name] for n, of in speeds.items() if name in of}
        axes.plot(list(found), list(found.values()), marker="osv^D*x"[i % 7], label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="stages, one process each",
        ylabel="speed / backpropagation in one process",
        title=title,
    )
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.set_yticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
