"""Greedy learning in overlapping units: a loss reaches a window of blocks."""

from __future__ import annotations

from collections.abc import Sequence

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.objectives import Activity, Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base.objectives import one_per_block
from layerwise.rules.families.windows import Losses, WindowRule, check_units, ends


class Overlap(WindowRule):
    """Greedy learning in units of `overlap + 1` blocks, each of which shares `overlap` blocks with
    the next unit.

    With m the overlap, unit k ends at block k and its loss also reaches the m blocks before block
    k:

        L_k    = objective_k(h_k),   k = m, m+s, m+2s ... and K-1,   h_k = f_k(h_{k-1})
        grad_j = sum over these k in j ... j+m of d L_k / d f_j

    Blocks are numbered from 0 to K-1 here. A block in several units gets the sum of their
    gradients, which is the gradient of the sum of all losses. Each unit has a head of its own.

    Xiong, Ren & Urtasun 2020 (LoCo, arXiv:2008.01342), with any loss instead of the contrastive
    one. A unit of LoCo is two stages of a ResNet, and a unit ends with every stage from the second
    on: m = 2s-1 for s blocks per stage. The blocks before the end of the first unit have no loss of
    their own. Laskin et al. 2020 (arXiv:2012.03837) call the rule overlapping local updates, and
    with s = m+1, where nothing overlaps, chunked local updates. With m = 0 it is `Greedy`; with m
    >= K-1, so also with one block, it is backpropagation.

    The graphs of at most m + 1 blocks and of their heads are alive at a time. Each block runs
    forward once, and backward once for its weights and about m/s times for its input. Compiled
    blocks run uncompiled unless m = 0.

    Args:
        blocks: the network's blocks; made with an example input if an objective has a head, because
            heads take their shapes from it.
        objectives: one objective, of which every block except the last gets its own copy; or a list
            with one objective or None per block; or a list with one per block except the last. If
            the last block's objective is left out, the last block predicts the labels from the
            network's own output. Objectives of blocks that end no unit are not used.
        overlap: m, the number of earlier blocks that a loss also reaches; 0 or more.
        criterion: the loss function of the last block if `objectives` leaves it out: takes class
            scores and labels, returns a scalar.
        every: s, the distance between the ends of units in blocks, from 1 to m + 1, so that every
            block is in a unit.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example and an
            objective has a head; `objectives` has the wrong length, contains something other than
            objectives, or leaves the last block with None; a negative overlap; an `every` that
            leaves a gap between units.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective | None],
        overlap: int = 1,
        criterion: Criterion = cross_entropy,
        every: int = 1,
    ):
        check_units("Overlap", overlap, every)
        found = one_per_block("Overlap", blocks, objectives, criterion)
        of_units = ends(len(blocks), overlap, every)
        used = [objective if k in of_units else None for k, objective in enumerate(found)]
        super().__init__(blocks, used, overlap, every)

    def losses(self, k: int, activity: Activity, batch: Batch) -> Losses:
        if k not in self.objectives:
            return Losses()
        loss, scores = self.loss(k, activity, batch)
        return Losses(own=loss, reaching=loss, scores=scores)
