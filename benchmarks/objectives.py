"""What local objectives cost: VGG8b, every layer its own block, with each of them in turn.

python benchmarks/objectives.py    writes results/step-vgg8b-objectives.json
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
from layerwise.objectives import (
    Classify,
    KernelSeparation,
    Objective,
    PredictProjection,
    Reconstruct,
    SimilarityMatching,
)

BATCH, ROUNDS = 32, 3


def predsim(**options: object) -> Objective:
    similarity = SimilarityMatching(**options)  # type: ignore[arg-type]
    return 0.01 * Classify(heads.Linear(features=2048)) + 0.99 * similarity


OBJECTIVES: dict[str, Objective] = {
    "Classify (DGL)": Classify(heads.Linear()),
    "PredSim": predsim(),
    "PredSim, after pooling": predsim(before_pooling=False),
    "PredSim, features=4096": predsim(features=4096),
    "sim-bpf": SimilarityMatching(convolve=False, features=4096, projection=128),
    "pred-bpf": PredictProjection(),
    "KernelSeparation": KernelSeparation(),
    "InfoPro": (5, 0.5) * Reconstruct(heads.Bilinear(channels=12), "bce")
    + (0, 1) * Classify(heads.Linear()),
}


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)


def main() -> None:
    torch.set_num_threads(1)  # as in step.py
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    network = models.vgg8b()

    def blocks() -> Blocks:
        return Blocks(copy.deepcopy(network), example=x)

    contenders = [Contender("backprop", rules.Backprop(blocks()))]
    for name, objective in OBJECTIVES.items():
        contenders.append(Contender(name, rules.Greedy(blocks(), objective), "block"))
    table = StepTable(
        title="VGG8b, 8 blocks",
        batch=tuple(x.shape),
        setting={
            "dtype": "float32",
            "memory_format": "contiguous",
            "optimizer": "SGD(lr=0.01, momentum=0.9, fused=True)",
            "heads": "",
        },
        provenance=describe() | {"command": "python benchmarks/objectives.py"},
        contenders=measure(contenders, x, y, sgd, rounds=ROUNDS),
    )
    console.print(table)
    table.save(Path(__file__).parent / "results" / "step-vgg8b-objectives.json")


if __name__ == "__main__":
    main()
