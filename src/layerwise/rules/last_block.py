"""Only the last block learns: the lower bound of every local rule."""

from __future__ import annotations

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class LastBlock(LocalRule):
    """The last block learns to predict the labels; those before it stay as they were initialised.

    What a local rule must beat to have learned features at all (its earlier blocks would else be
    no better than random ones). BatchNorm statistics of the fixed blocks move, as in any forward
    pass in train mode. With one block it is backpropagation.

    Args:
        blocks: the network.
        criterion: of class scores and labels, a scalar.
    """

    @checks_arguments
    def __init__(self, blocks: Blocks, criterion: Criterion = cross_entropy):
        super().__init__(blocks, criterion=criterion)
