"""Cost of a step with each head: VGG8b, every layer a block.

python benchmarks/heads.py    writes results/step-vgg8b-heads.json
"""

from __future__ import annotations

import functools

from in_turns import measure_vgg8b
from torch import nn

from layerwise import heads, rules

HEADS = {
    "Linear(pool=2)": heads.Linear(),
    "MLP()": heads.MLP(),
    "MLPSR()": heads.MLPSR(),
    "Conv(reduce=4)": heads.Conv(reduce=4),
    "Conv()": heads.Conv(),
}


def on_maps(head: heads.Head) -> heads.Head:
    """`head` for feature maps, and a linear head for the vector of the fully connected layer."""

    def recipe(in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
        return (head if len(in_shape) == 3 else heads.Linear())(in_shape, out_shape)

    return recipe


def main() -> None:
    makers = {
        f"DGL, 8 blocks, {name}": functools.partial(rules.DGL, head=on_maps(head))
        for name, head in HEADS.items()
    }
    measure_vgg8b("VGG8b", "vgg8b-heads", makers, batch=16, rounds=3)


if __name__ == "__main__":
    main()
