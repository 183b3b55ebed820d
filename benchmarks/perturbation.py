"""Cost of a step without a backward pass: VGG8b, every layer a block.

python benchmarks/perturbation.py    writes results/step-vgg8b-perturbation.json
"""

from __future__ import annotations

from collections.abc import Callable

from in_turns import measure_vgg8b

from layerwise import heads, objectives, rules
from layerwise.blocks import Blocks
from layerwise.rules.base import Rule

MAKERS: dict[str, Callable[[Blocks], Rule]] = {
    "checkpointing": lambda blocks: rules.Backprop(blocks, checkpoint=True),
    "ForwardGradient": rules.ForwardGradient,
    "SPSA": rules.SPSA,
    "SPSA, one-sided": lambda blocks: rules.SPSA(blocks, two_sided=False),
    "SPSA, one-sided, rank 8": lambda blocks: rules.SPSA(blocks, two_sided=False, rank=8),
    "LocalForwardGradient": lambda blocks: rules.LocalForwardGradient(
        blocks, objectives.Classify(heads.Linear())
    ),
    "LocalForwardGradient, weights": lambda blocks: rules.LocalForwardGradient(
        blocks, objectives.Classify(heads.Linear()), weights=True
    ),
}


def main() -> None:
    measure_vgg8b("VGG8b, 8 blocks", "vgg8b-perturbation", MAKERS, batch=32, rounds=3)


if __name__ == "__main__":
    main()
