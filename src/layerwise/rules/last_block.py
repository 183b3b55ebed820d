"""Training of the last block alone, the lower bound for every local rule."""

from __future__ import annotations

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class LastBlock(LocalRule):
    """Only the last block learns to predict the labels; all earlier blocks keep their initial
    weights.

    This is the lower bound for every local rule: a rule that does not beat it has learned no
    features that are better than random ones. BatchNorm statistics of the fixed blocks move, as in
    any forward pass in train mode. With one block it is backpropagation.

    Args:
        blocks: the network's blocks.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`.
    """

    @checks_arguments
    def __init__(self, blocks: Blocks, criterion: Criterion = cross_entropy):
        super().__init__(blocks, criterion=criterion)
