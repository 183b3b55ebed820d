"""Section of docs/results.md: all rules at equal budget (benchmarks/all_rules.py)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

from pages.files import commands, machines, result
from pages.spread import mean, ratio

SETTINGS = {
    "cnn": "CNN on CIFAR-10",
    "resnet20": "ResNet-20 on CIFAR-10",
    "digits": "Small CNN on digits",
    "original-1": "The original study's CNN, a quarter of its width",
}

INTRODUCTION = """\
## Accuracy at equal budget

Every rule trains the same network for the same number of epochs, with the same augmentation,
optimizer and batch size. For every rule the same learning rates are tried with the first seed; the
one with the highest validation accuracy trains the other seeds. The name in the first column is
that of `benchmarks/all_rules.py`; the options of each rule are under its table.
"""


def section() -> list[str]:
    """A table for each network."""
    return [INTRODUCTION, *(_table(setting) for setting in SETTINGS)]


def shipped() -> str:
    """What each rule costs in accuracy, for `layerwise plan --memory`: by rule and setting, the
    points by which every way of making it is above backpropagation."""
    found: dict[str, dict[str, list[float]]] = {}
    for setting in ("cnn", "resnet20"):
        of_setting = rows(setting)
        epochs = of_setting["backprop"]["config"]["epochs"]
        reference = _mean_last(of_setting["backprop"])
        for row in of_setting.values():
            of_rule = found.setdefault(row["config"]["rule"]["name"], {})
            name = f"{SETTINGS[setting]}, {epochs} epochs"
            of_rule.setdefault(name, []).append(round(_mean_last(row) - reference, 2))
    return json.dumps(found, indent=1) + "\n"


def _mean_last(row: Mapping[str, Any]) -> float:
    return statistics.mean(100 * run["last"] for run in row["test_accuracy"])


def rows(setting: str) -> dict[str, dict[str, Any]]:
    """The measurements of each rule, under its name."""
    return {row["rule"]: row for row in result(f"all-rules-{setting}")["rows"]}


def accuracy(row: Mapping[str, Any], which: str, places: int) -> str:
    """Test accuracy in %: of the `last` epoch, or of the epoch that is `best` on validation."""
    return mean([100 * found[which] for found in row["test_accuracy"]], places)


def flops(costs: Mapping[str, Any]) -> str:
    """FLOPs of a training step, as a ratio to backpropagation's."""
    return f"{costs['step_flops'] / costs['backprop_flops']:.2f}"


def memory(row: Mapping[str, Any]) -> str:
    """Memory of a training step, as a ratio to backpropagation's."""
    return f"{row['step']['bytes'] / row['step']['backprop_bytes']:.2f}"


def head_parameters(row: Mapping[str, Any]) -> int:
    """Parameters of all heads."""
    return sum(block["head_parameters"] for block in row["costs"]["blocks"])


def _table(setting: str) -> str:
    found = list(rows(setting).values())
    config, first = found[0]["config"], found[0]["step"]
    augment = [k for k in ("flip", "crop", "cutout", "resized_crop") if config["augment"][k]]
    tried, seeds = ", ".join(found[0]["searched"]), ", ".join(map(str, found[0]["seeds"]))
    measured = [row["environment"] for row in found]
    made_by = dict.fromkeys(m["command"] for m in measured)
    lines = [
        f"### {SETTINGS[setting]}\n",
        f"Data {config['data']['name']} (augmentation: {', '.join(augment) or 'none'}), "
        f"{config['model']['name']} in {len(found[0]['costs']['blocks'])} blocks, "
        f"{config['epochs']} epochs, {config['optimizer']['name']}, precision "
        f"{config['precision']}. Learning rates tried with seed {found[0]['seeds'][0]}: {tried}; "
        f"seeds {seeds}.\n",
        "| rule | test, best on validation, % | test, last, % | learning rate | FLOPs | heads' "
        "parameters | step time | memory | largest block's share |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        f"| *checkpointing* | as backprop | | | | | "
        f"{ratio(first['checkpointing_times_s'], first['backprop_times_s'])} "
        f"| {first['checkpointing_bytes'] / first['backprop_bytes']:.2f} | |",
    ]
    for row in found:
        step, seconds = row["step"], row["block_seconds"]
        share = f"{max(seconds) / sum(seconds):.2f}" if seconds else "-"
        lines.append(
            f"| {row['rule']} | {accuracy(row, 'best', 2)} | {accuracy(row, 'last', 2)} "
            f"| {row['rate']:g} | {flops(row['costs'])} | {head_parameters(row):,} "
            f"| {ratio(step['times_s'], step['backprop_times_s'])} | {memory(row)} | {share} |"
        )
    phases = (
        " For `sequential`, FLOPs and time are means over its phases, and memory is the largest of "
        "any phase."
        if "sequential" in rows(setting)
        else ""
    )
    return (
        "\n".join(lines)
        + "\n\nAccuracies are means ± standard deviations over the seeds. FLOPs, time (median of "
        "rounds in turns, lowest to highest) and memory are those of a training step, heads and "
        "optimizer included, as ratios to backpropagation's, in float32. The largest block's share "
        "of a step's time bounds the gain from running blocks in parallel; a dash marks rules "
        f"whose blocks cannot run in parallel.{phases} {machines(measured)}.\n\n"
        + commands([*made_by, *(f"{row['rule']}: {row['command']}" for row in found)])
    )
