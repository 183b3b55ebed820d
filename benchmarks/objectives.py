"""Cost of a step with each local objective: VGG8b, every layer a block.

python benchmarks/objectives.py    writes results/step-vgg8b-objectives.json
"""

from __future__ import annotations

import functools

from in_turns import measure_vgg8b

from layerwise import heads, rules
from layerwise.objectives import (
    Classify,
    KernelSeparation,
    Objective,
    PredictProjection,
    Reconstruct,
    SimilarityMatching,
)


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


def main() -> None:
    makers = {
        name: functools.partial(rules.Greedy, objectives=objective)
        for name, objective in OBJECTIVES.items()
    }
    measure_vgg8b("VGG8b, 8 blocks", "vgg8b-objectives", makers, batch=32, rounds=3)


if __name__ == "__main__":
    main()
