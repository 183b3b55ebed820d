"""Every block minimises an objective of its own; nothing comes back from later blocks."""

from __future__ import annotations

from collections.abc import Sequence

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.objectives import Objective
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class Greedy(LocalRule):
    """Simultaneous greedy training of all blocks with any local objectives.

    Belilovsky et al. 2020 (arXiv:1901.08164), algorithm 1, with the auxiliary loss left open.
    With one block it is backpropagation.

    Args:
        blocks: the network, made with an example where an objective has a head.
        objectives: one objective, of which every block but the last gets its own copy; or one per
            block; or one per block but the last. Where the last is left out it predicts the labels
            from the network's own output.
        criterion: the last block's loss where its objective is left out.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective],
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, objectives, criterion)
