"""Section of docs/results.md: isolated residual blocks (benchmarks/residual_gap.py)."""

from __future__ import annotations

from typing import Any

from pages.files import commands, machines, result
from pages.spread import mean

MEANINGS = {
    "backprop": "",
    "backprop, 1.25 of the steps": "as many FLOPs as *pooled*",
    "DGL, narrow heads": "two convolutions, each halves the maps and doubles the channels",
    "AugLocal": "two later layers in a head",
    "pooled": "`pool=2`: heads on maps of half the size",
    "pooled, depth 3": "three later layers",
    "pooled by 4, depth 6": "six later layers, maps of a quarter of the size",
    "averaged copies, depth 3": "heads have averages (0.99) of the network's later weights",
    "displacement 0.01": "*pooled*, a penalty on how far a block moves its input (TRGL)",
    "displacement 0.1": "",
    "displacement 1": "",
    "displacement 1, depth 3": "",
    "half of the batch": "*pooled*, heads read every second sample of a batch",
    "half of the batch, not pooled": "",
    "decorrelated": "*pooled*, every convolution decorrelates its input",
    "decorrelated, displacement 1": "",
    "decorrelated, backprop": "the same network",
    "image": "*pooled*, every block also reads the image (ContSup)",
    "image, backprop": "the same network",
    "image, displacement 1": "",
    "soft targets": "*pooled*, half of a label is the last block's prediction of the epoch before",
    "realigned every 10": "*pooled*, every tenth step is backpropagation's (not local)",
}


def ways() -> dict[str, list[dict[str, Any]]]:
    """The rows of each way, one for a seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in result("residual-gap")["rows"]:
        found.setdefault(row["way"], []).append(row)
    return found


def accuracy(rows: list[dict[str, Any]]) -> str:
    """Test accuracy in %."""
    return mean([100 * row["test_accuracy"] for row in rows], 1)


def flops(rows: list[dict[str, Any]]) -> float:
    """FLOPs of a training, as a ratio to backpropagation's."""
    whole = ways()["backprop"][0]
    return rows[0]["flops"] * rows[0]["steps"] / (whole["flops"] * whole["steps"])


def section() -> list[str]:
    """A row for each way."""
    found = result("residual-gap")
    made = [row["environment"] for row in found["rows"]]
    lines = [
        "## Isolated blocks on a residual network\n",
        "What closes the gap to backpropagation if each residual block of ResNet-20 (half width) "
        "learns alone? 12,000 images\n"
        f"of {found['data']} with flips and crops, 5 epochs, AdamW with one learning rate (0.01, "
        "one cycle), batches of 128, bf16;\ntest accuracy on 5,000 other images of the training "
        "set. FLOPs are those of all steps, heads included.\n",
        "| way | | test accuracy, % | seeds | FLOPs |",
        "|---|---|--:|--:|--:|",
    ]
    lines += [
        f"| {way} | {MEANINGS[way]} | {accuracy(rows)} | {len(rows)} | {flops(rows):.2f} |"
        for way, rows in ways().items()
    ]
    return [*lines, f"\n{machines(made)}.\n", commands([found["command"]])]
