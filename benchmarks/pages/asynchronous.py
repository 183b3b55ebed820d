"""Section of docs/results.md: stages that do not wait (benchmarks/asynchronous.py)."""

from __future__ import annotations

from typing import Any

from pages.files import commands, machines, result
from pages.spread import mean

SLOW = {0: "first", 2: "last"}


def section() -> list[str]:
    """Accuracy by the size of the buffer, and by how slow one stage is."""
    found = result("asynchronous")
    lines = [
        "## Stages that do not wait\n",
        "DGL with a replay buffer (`--stages 3 --replay M`), in small the figures of Belilovsky et "
        "al. 2020\n([arXiv:1901.08164](https://arxiv.org/abs/1901.08164)): BasicCNN with 32 "
        f"channels in three stages, {found['images']:,} images of {found['data']},\n"
        f"{found['epochs']} epochs, {found['steps']} steps. A step of the slow stage takes S "
        "times as long; every stage keeps the M newest\nbatches. One process plays the three "
        "stages by a clock, with the buffers of the library.\n",
        "| slow stage | S | M | test accuracy, % | different batches that the stages used, % |",
        "|---|--:|--:|--:|---|",
    ]
    lines += [_row(row, found["steps"]) for row in found["rows"]]
    return [
        *lines,
        f"\nMeans ± standard deviations over seeds "
        f"{', '.join(str(run['seed']) for run in found['rows'][0]['runs'])}. "
        f"{machines([found])}.\n",
        "![accuracy by buffer size and slowdown](pictures/asynchronous.png)\n",
        "A slow last stage costs nothing if the buffer is large enough to hold different batches; "
        "with a small one it\nrepeats the same few. A slow first stage costs accuracy with every "
        "buffer, because the later stages train on\nfewer batches, which come from weights that "
        "have changed since.\n",
        commands([found["command"]]),
    ]


def _row(row: dict[str, Any], steps: int) -> str:
    used = [
        sum(of_stage) / len(of_stage) / steps
        for of_stage in zip(*(run["used"] for run in row["runs"]), strict=True)
    ]
    slow = "none" if row["slowdown"] == 1 else SLOW[row["slow"]]
    found = mean([100 * run["test_accuracy"] for run in row["runs"]], 1)
    shares = ", ".join(f"{100 * share:.0f}" for share in used)
    return f"| {slow} | {row['slowdown']:g} | {row['replay']} | {found} | {shares} |"
