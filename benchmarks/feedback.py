"""What feedback through other matrices costs: VGG8b, every layer its own block.

python benchmarks/feedback.py    writes results/step-vgg8b-feedback.json
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from layerwise import models, rules
from layerwise.bench import Contender, StepTable, measure
from layerwise.blocks import Blocks
from layerwise.console import console
from layerwise.environment import describe

BATCH, ROUNDS = 32, 3


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)


def main() -> None:
    torch.set_num_threads(1)  # as in step.py
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    network = models.vgg8b()

    def blocks() -> Blocks:
        return Blocks(copy.deepcopy(network), example=x)

    contenders = [
        Contender("backprop", rules.Backprop(blocks())),
        Contender("FeedbackAlignment", rules.FeedbackAlignment(blocks())),
        Contender("SignSymmetry", rules.SignSymmetry(blocks())),
        Contender("DirectFeedbackAlignment", rules.DirectFeedbackAlignment(blocks()), "block"),
        Contender(
            "DirectRandomTargetProjection", rules.DirectRandomTargetProjection(blocks()), "block"
        ),
    ]
    table = StepTable(
        title="VGG8b, 8 blocks",
        batch=tuple(x.shape),
        setting={
            "dtype": "float32",
            "memory_format": "contiguous",
            "optimizer": "SGD(lr=0.01, momentum=0.9, fused=True)",
            "heads": "",
        },
        provenance=describe() | {"command": "python benchmarks/feedback.py"},
        contenders=measure(contenders, x, y, sgd, rounds=ROUNDS),
    )
    console.print(table)
    table.save(Path(__file__).parent / "results" / "step-vgg8b-feedback.json")


if __name__ == "__main__":
    main()
