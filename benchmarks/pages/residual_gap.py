"""Section of docs/results.md: isolated residual blocks (benchmarks/residual_gap.py)."""

from __future__ import annotations

from typing import Any

from pages.files import commands, result
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
    "image": "*pooled*, every block also reads the image (ContSup)",
    "image, backprop": "the same network",
    "soft targets": "*pooled*, half of a label is the last block's prediction of the epoch before",
    "realigned every 10": "*pooled*, every tenth step is backpropagation's (not local)",
}


def section() -> list[str]:
    """A row for each way."""
    found = result("residual-gap")
    ways: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        ways.setdefault(row["way"], []).append(row)
    whole = ways["backprop"][0]["flops"]
    cpu = {
        f"{row['environment']['cpu']}, torch {row['environment']['torch']}" for row in found["rows"]
    }
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
    for way, rows in ways.items():
        accuracy = mean([100 * row["test_accuracy"] for row in rows], 1)
        flops = rows[0]["flops"] * rows[0]["steps"] / (whole * ways["backprop"][0]["steps"])
        lines.append(f"| {way} | {MEANINGS[way]} | {accuracy} | {len(rows)} | {flops:.2f} |")
    return [*lines, f"\n{', '.join(sorted(cpu))}.\n", commands([found["command"]])]
