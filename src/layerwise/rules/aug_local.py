"""Local learning with heads made of the network's own later layers."""

from __future__ import annotations

import itertools

from layerwise.blocks import Blocks
from layerwise.blocks.parts import layers, shapes_of_layers
from layerwise.errors import InputError
from layerwise.heads.later_layers import LaterLayers, Placed
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class AugLocal(LocalRule):
    """Decoupled greedy learning whose heads are made of layers that follow in the network.

    Ma et al. 2024 (arXiv:2402.17318). The network has layers 0 to L-1 before its classifier (a
    layer: `layerwise.blocks.parts`); block k, of blocks 0 to K-1, ends with layer l. Its head is

        layers round(l + i (L-1-l) / d_k) for i = 1 ... d_k, with fresh weights; pooling; linear
        d_k = max(1, round((1-r) depth + r)),    r = decay k / (K-2)

    or all that follow where these are no more than d_k. With one block it is backpropagation.

    A layer that follows another one than in the network is made to fit (`heads.later_layers`).

    Deviations: the authors halve by the stride of the layer itself, and give a residual block a
    projecting shortcut; at depth 1 they have a BatchNorm before the linear layer; they join the
    network's last `depth` modules into one, here the cut decides.

    Args:
        blocks: the network, made with an example.
        depth: layers in the first block's head.
        decay: by how much of the way to 1 the depth falls from the first head to the last.
        criterion: of class scores and labels, a scalar; every block's.

    Raises:
        InputError: a depth below 1, a decay outside [0, 1].
    """

    def __init__(
        self,
        blocks: Blocks,
        depth: int = 2,
        decay: float = 0.5,
        criterion: Criterion = cross_entropy,
    ):
        if depth < 1 or not 0 <= decay <= 1:
            raise InputError(
                f"AugLocal(depth={depth}, decay={decay}): give a depth of at least 1 and a decay "
                "in [0, 1]; with decay 0 all heads are as deep as the first"
            )
        known = isinstance(blocks, Blocks) and blocks.shapes is not None
        given = _later(blocks, depth, decay) if known else [[]] * max(0, len(list(blocks)) - 1)
        heads = [LaterLayers(blocks, chosen) for chosen in given]
        super().__init__(blocks, [Classify(head, criterion) for head in heads], criterion)


def depths(blocks: int, depth: int, decay: float) -> list[int]:
    """How many layers the head of each block but the last has."""
    ratios = [decay * k / max(1, blocks - 2) for k in range(blocks - 1)]
    return [max(1, round(depth * (1 - r) + r)) for r in ratios]


def choose(l: int, count: int, depth: int) -> list[int]:
    """Which of `count` layers follow layer `l` in its head."""
    left = count - 1 - l
    if depth >= left:
        return list(range(l + 1, count))
    return [round(l + i * left / depth) for i in range(1, depth + 1)]


def _later(blocks: Blocks, depth: int, decay: float) -> list[list[Placed]]:
    """The layers of the head of each block but the last."""
    of_blocks = [layers(block) for block in blocks]
    ends = list(itertools.accumulate(map(len, of_blocks)))
    # A head never has a layer of the first block, whose input need not be floating point.
    network = [Placed(layer, ()) for layer in of_blocks[0]]
    for k in range(1, len(blocks)):
        network += map(Placed, of_blocks[k], shapes_of_layers(blocks, k))
    count = len(network) - 1  # without the classifier
    return [
        [network[j] for j in choose(end - 1, count, d)]
        for end, d in zip(ends, depths(len(blocks), depth, decay), strict=False)
    ]
