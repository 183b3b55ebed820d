"""What heads cost: VGG8b, every layer its own block, with each of the heads in turn.

python benchmarks/heads.py    writes results/step-vgg8b-heads.json
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from layerwise import heads, models, rules
from layerwise.bench import Contender, StepTable, measure
from layerwise.blocks import Blocks
from layerwise.console import console
from layerwise.environment import describe

BATCH, ROUNDS = 16, 3
HEADS = {
    "Linear(pool=2)": heads.Linear(),
    "MLP()": heads.MLP(),
    "MLPSR()": heads.MLPSR(),
    "Conv(reduce=4)": heads.Conv(reduce=4),
    "Conv()": heads.Conv(),
}


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)


def on_maps(head: heads.Head) -> heads.Head:
    """`head` on feature maps; the fully connected layer's vector has a linear one."""

    def recipe(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
        return (head if len(in_shape) == 3 else heads.Linear())(in_shape, out_shape)

    return recipe


def main() -> None:
    torch.set_num_threads(1)  # as in step.py
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    network = models.vgg8b()

    def blocks() -> Blocks:
        return Blocks(copy.deepcopy(network), example=x)

    contenders = [Contender("backprop", rules.Backprop(blocks()))]
    for name, head in HEADS.items():
        rule = rules.DGL(blocks(), head=on_maps(head))
        contenders.append(Contender(f"DGL, 8 blocks, {name}", rule, "block"))
    table = StepTable(
        title="VGG8b",
        batch=tuple(x.shape),
        setting={
            "dtype": "float32",
            "memory_format": "contiguous",
            "optimizer": "SGD(lr=0.01, momentum=0.9, fused=True)",
            "heads": "",
        },
        provenance=describe() | {"command": "python benchmarks/heads.py"},
        contenders=measure(contenders, x, y, sgd, rounds=ROUNDS),
    )
    console.print(table)
    table.save(Path(__file__).parent / "results" / "step-vgg8b-heads.json")


if __name__ == "__main__":
    main()
