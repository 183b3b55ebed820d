"""Steps of VGG8b, every layer its own block: backpropagation and others in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from layerwise import models, rules
from layerwise.bench import Contender, StepTable, measure
from layerwise.blocks import Blocks
from layerwise.console import console
from layerwise.environment import describe
from layerwise.rule import Needs, Rule


def measure_vgg8b(
    title: str, name: str, makers: Mapping[str, Callable[[Blocks], Rule]], batch: int, rounds: int
) -> None:
    """Measure backpropagation and a rule of each maker, and write `results/step-NAME.json`.

    One thread, as in step.py. Where nothing passes back through the blocks, each is stepped as
    soon as it is done.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    network = models.vgg8b()
    contenders = []
    for of, make in {"backprop": rules.Backprop, **makers}.items():
        rule = make(Blocks(copy.deepcopy(network), example=x))
        contenders.append(Contender(of, rule, "end" if Needs.BACKWARD in rule.needs else "block"))
    table = StepTable(
        title=title,
        batch=tuple(x.shape),
        setting={
            "dtype": "float32",
            "memory_format": "contiguous",
            "optimizer": "SGD(lr=0.01, momentum=0.9, fused=True)",
            "heads": "",
        },
        provenance=describe(),
        contenders=measure(contenders, x, y, _sgd, rounds=rounds),
    )
    console.print(table)
    table.save(Path(__file__).parent / "results" / f"step-{name}.json")


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)
