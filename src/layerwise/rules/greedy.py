"""Greedy learning: every block minimises an objective of its own."""

from __future__ import annotations

from collections.abc import Sequence

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.objectives import Objective
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class Greedy(LocalRule):
    """Simultaneous greedy training: every block minimises a local objective of its own.

    Belilovsky et al. 2020 (arXiv:1901.08164), algorithm 1, with any auxiliary loss. Block k maps
    h_{k-1} to h_k; sg[] stops the gradient:

        h_k    = f_k(sg[h_{k-1}])
        grad_k = d objective_k(h_k) / d (f_k, head_k)

    With one block it is backpropagation.

    Args:
        blocks: the network's blocks; made with an example input if an objective has a head, because
            heads take their shapes from it.
        objectives: one objective, of which every block except the last gets its own copy; or a list
            with one objective per block; or a list with one per block except the last. If the last
            block's objective is left out, the last block predicts the labels from the network's own
            output.
        criterion: the loss function of the last block if `objectives` leaves it out: takes class
            scores and labels, returns a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example and an
            objective has a head; `objectives` has the wrong length, contains something other than
            objectives, or leaves the last block with None.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective],
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, objectives, criterion)
