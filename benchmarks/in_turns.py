"""Measure steps in turns and save the table; rules on VGG8b, every layer a block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from layerwise import models, rules
from layerwise.blocks import Blocks
from layerwise.costs import Contender, Measured, StepTable, measure
from layerwise.report.console import console
from layerwise.rules.base import Needs, Rule
from layerwise.runs.provenance import provenance

RESULTS = Path(__file__).parent / "results"
SGD = "SGD(lr=0.01, momentum=0.9, fused=True)"


def measure_vgg8b(
    title: str, name: str, makers: Mapping[str, Callable[[Blocks], Rule]], batch: int, rounds: int
) -> None:
    """Measure backpropagation and the rules that `makers` make; write `results/step-NAME.json`.

    One thread, as in step.py. If nothing passes back through the blocks, each block is stepped as
    soon as its gradients are complete.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    network = models.vgg8b()
    contenders = []
    for of, make in {"backprop": rules.Backprop, **makers}.items():
        rule = make(Blocks(copy.deepcopy(network), example=x))
        contenders.append(Contender(of, rule, "end" if Needs.BACKWARD in rule.needs else "early"))
    write(f"step-{name}", title, x, measure(contenders, x, y, sgd, rounds=rounds), SGD)


def write(
    name: str,
    title: str,
    x: Tensor,
    contenders: tuple[Measured, ...],
    optimizer: str,
    **setting: str,
) -> None:
    """Print the measurements, in float32 on batch `x`, and write them to `results/NAME.json`."""
    table = StepTable(
        title=title,
        batch=tuple(x.shape),
        setting={
            "dtype": "float32",
            "memory_format": "contiguous",
            "optimizer": optimizer,
            "heads": "",
            **setting,
        },
        provenance=provenance(),
        contenders=contenders,
    )
    console.print(table)
    table.save(RESULTS / f"{name}.json")


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)
