"""Local learning whose heads consist of the network's own later layers."""

from __future__ import annotations

import itertools

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.blocks.parts import layers, shapes_of_layers
from layerwise.errors import InputError
from layerwise.heads.later_layers import LaterLayers, Placed
from layerwise.objectives import Classify, Displacement, Objective
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule
from layerwise.rules.base.checks import checked


class AugLocal(LocalRule):
    """Decoupled greedy learning in which the heads consist of the network's own later layers.

    Ma et al. 2024 (arXiv:2402.17318). The network has layers 0 to L-1 before its classifier
    (`layerwise.blocks.parts` defines a layer). Blocks are numbered from 0 to K-1 here, and block k
    ends with layer l. Its head consists of

        layers round(l + i (L-1-l) / d_k) for i = 1 ... d_k, with fresh weights; pooling; linear
        d_k = max(1, round((1-r) depth + r)),    r = decay k / (K-2)

    If at most d_k layers follow block k, all of them are in its head. Each block minimises the loss
    of its head, and no gradient passes between blocks. With one block it is backpropagation.

    In a head, a layer can follow another layer than in the network. It is then fitted to its new
    input (`heads.later_layers`).

    Deviations: the authors halve feature maps by the stride of the layer itself, and give a
    residual block a projecting shortcut; here that holds for the residual blocks of
    `models.resnet`, whose shortcut pads the channels with zeros. At depth 1 they have a BatchNorm
    before the linear layer. They join the network's last `depth` modules into one; here the cut
    decides. `pool` and `displacement` are additions of this library.

    Args:
        blocks: the network's blocks, made with an example input, from which the heads take their
            shapes.
        depth: the number of layers in the first block's head, at least 1.
        decay: how far the depth falls from the first head to the last, as a fraction of the way
            from `depth` to 1; in [0, 1]. With 0 all heads have the same depth.
        pool: a head first averages feature maps over windows of `pool` by `pool`, and its layers
            read maps as many times smaller than in the network; at least 1. Heads on maps halved by
            `pool=2` need at most about a quarter of the FLOPs. It does not change tokens.
        displacement: weight of the penalty `objectives.Displacement` on every block except the
            last, 0 or more.
        criterion: the loss function of every block: takes class scores and labels, returns a
            scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; a depth or a
            pool below 1; a decay outside [0, 1]; a negative displacement; a layer that cannot take
            maps as small as `pool` makes them.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        depth: int = 2,
        decay: float = 0.5,
        pool: int = 1,
        displacement: float = 0.0,
        criterion: Criterion = cross_entropy,
    ):
        if depth < 1 or pool < 1 or not 0 <= decay <= 1:
            raise InputError(
                f"AugLocal(depth={depth}, decay={decay}, pool={pool}): give a depth and a pool of "
                "at least 1 and a decay in [0, 1]; with decay 0 all heads are as deep as the first"
            )
        if not displacement >= 0:
            raise InputError(
                f"AugLocal(displacement={displacement}): give a weight of at least 0; with 0 "
                "blocks may move their input as far as they like"
            )
        blocks = checked("AugLocal", blocks)
        known = blocks.shapes is not None
        given = _later(blocks, depth, decay) if known else [[]] * (len(blocks) - 1)
        heads = [LaterLayers(blocks, chosen, pool) for chosen in given]
        objectives: list[Objective] = [Classify(head, criterion) for head in heads]
        if displacement:
            objectives = [o + displacement * Displacement() for o in objectives]
        super().__init__(blocks, objectives, criterion)


def depths(blocks: int, depth: int, decay: float) -> list[int]:
    """The number of layers in the head of every block except the last."""
    ratios = [decay * k / max(1, blocks - 2) for k in range(blocks - 1)]
    return [max(1, round(depth * (1 - r) + r)) for r in ratios]


def choose(l: int, count: int, depth: int) -> list[int]:
    """The layers, out of `count`, in the head of a block that ends with layer `l`."""
    left = count - 1 - l
    if depth >= left:
        return list(range(l + 1, count))
    return [round(l + i * left / depth) for i in range(1, depth + 1)]


def _later(blocks: Blocks, depth: int, decay: float) -> list[list[Placed]]:
    """The layers in the head of every block except the last."""
    of_blocks = [layers(block) for block in blocks]
    ends = list(itertools.accumulate(map(len, of_blocks)))
    # No head contains a layer of the first block, whose input may be integers.
    network = [Placed(layer, (), ()) for layer in of_blocks[0]]
    for k in range(1, len(blocks)):
        around = itertools.pairwise(shapes_of_layers(blocks, k))
        network += [Placed(layer, *pair) for layer, pair in zip(of_blocks[k], around, strict=True)]
    count = len(network) - 1  # without the classifier
    return [
        [network[j] for j in choose(end - 1, count, d)]
        for end, d in zip(ends, depths(len(blocks), depth, decay), strict=False)
    ]
