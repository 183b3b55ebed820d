"""Sections of docs/results.md: what a training step costs."""

from __future__ import annotations

import statistics
from typing import Any

from layerwise.costs import Measured, StepTable
from layerwise.costs import markdown as step_table
from pages.files import RESULTS, ROOT, commands, machines, result, results
from pages.spread import ratio

PICTURES = ROOT / "docs" / "pictures"
PICTURES_NOTE = (
    "The same, as pictures: memory against time of every way to train a network. A line is the "
    "front of a family: the least time that it reaches with at most this memory."
)


def sections() -> list[str]:
    """Steps of rules, and steps next to biotorch's."""
    paths = sorted(RESULTS.glob("step-*.json"))
    made_by = {found["command"] for found in results("step")}
    pictures = [
        f"![bytes against time](pictures/{picture.name})"
        for path in paths
        if (picture := PICTURES / f"{path.stem}.png").exists()
    ]
    peers = [StepTable.load(path) for path in sorted(RESULTS.glob("peers-*.json"))]
    return [
        "## A training step\n",
        step_table(paths),
        *([PICTURES_NOTE, *pictures] if pictures else []),
        commands(sorted(made_by)),
        *_predictions(),
        "## Compared with biotorch\n",
        _peers(peers),
    ]


def least(table: StepTable, family: str, limit: float) -> dict[str, Any] | None:
    """Name, and bytes and time as ratios to backpropagation's, of the way of a family that needs
    the least memory at no more than `limit` of backpropagation's time; also the ratios of time of
    all rounds. Ways that train only a part of the weights in a step do not count."""
    found = [
        {
            "name": contender.name,
            "bytes": ratios["peak_bytes"],
            "time": ratios["time"]["median"],
            "times": table.time_ratios(contender),
        }
        for contender in table.contenders
        if contender.family == family and "state of" not in contender.name
        for ratios in [table.ratios(contender)]
        if ratios["time"]["median"] <= limit
    ]
    return min(found, key=lambda way: way["bytes"], default=None)


def _predictions() -> list[str]:
    """What `layerwise plan --memory` predicts for these steps."""
    if not (RESULTS / "plan.json").exists():
        return []
    found = result("plan")
    of_bytes = [row["predicted_bytes"] / row["measured_bytes"] for row in found["rows"]]
    of_time = [row["predicted_time"] / row["measured_time"] for row in found["rows"]]
    near = sum(abs(ratio - 1) <= 0.2 for ratio in of_time)
    lines = [
        "## Predictions of what fits\n",
        "`layerwise plan --memory` predicts each step's bytes from a step that computes nothing, "
        "and its time from a few samples. Predicted bytes are "
        f"{min(of_bytes):.3f} to {max(of_bytes):.3f} of the measured ones. Predicted times are "
        f"{min(of_time):.2f} to {max(of_time):.2f} of them, in the median "
        f"{statistics.median(of_time):.2f}; {near} of {len(of_time)} are within a fifth.\n",
        "| network | | bytes: predicted / measured | time: predicted | measured |",
        "|---|---|--:|--:|--:|",
    ]
    lines += [
        f"| {row['network']} | {row['way']} "
        f"| {row['predicted_bytes'] / row['measured_bytes']:.2f} "
        f"| {row['predicted_time']:.2f} | {row['measured_time']:.2f} |"
        for row in found["rows"]
    ]
    return ["\n".join(lines) + "\n", commands([found["command"]])]


def _peers(tables: list[StepTable]) -> str:
    """The rules of benchmarks/peers.py, each next to biotorch's rule of the same name."""
    lines = [
        "| network, batch | | step / backprop's: CPU time | wall | FLOPs | memory "
        "| biotorch's: CPU time | wall | FLOPs | memory "
        "| faster than biotorch by: CPU time | wall |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for table in tables:
        of = {contender.name: contender for contender in table.contenders}
        batch = "x".join(map(str, table.batch))
        for name, own in of.items():
            if f"biotorch {name}" not in of:
                continue
            peer = of[f"biotorch {name}"]
            lines.append(
                f"| {table.title}, {batch} | {name} | {_over(table, own)} | {_over(table, peer)} "
                f"| {ratio(peer.cpu_times_s, own.cpu_times_s)} "
                f"| {ratio(peer.times_s, own.times_s)} |"
            )
    made, version = tables[0].provenance, tables[0].setting["biotorch"]
    made_by = sorted({table.provenance["command"] for table in tables})
    return (
        "\n".join(lines)
        + f"\n\nMedian of the rounds' ratios (lowest to highest); biotorch {version}. "
        f"{machines([made])}, {made['threads']} thread, float32. Where both packages execute 1.00 "
        "of backpropagation's FLOPs and CPU time is near 1, there is nothing to gain. `dfa` sends "
        "the error to every block here, and to every layer in biotorch.\n\n" + commands(made_by)
    )


def _over(table: StepTable, contender: Measured) -> str:
    ratios = table.ratios(contender)
    cpu, wall = ratios["cpu_time"]["median"], ratios["time"]["median"]
    return f"{cpu:.2f} | {wall:.2f} | {ratios['flops']:.2f} | {ratios['peak_bytes']:.2f}"
