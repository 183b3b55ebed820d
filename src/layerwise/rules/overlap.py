"""Local units that overlap: a loss reaches a window of blocks."""

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
    """Greedy learning in units of `overlap + 1` blocks, which share `overlap` with the next.

    With m the overlap, unit k ends at block k and its loss reaches the m blocks before it:

        L_k    = objective_k(h_k),   k = m, m+s, m+2s ... and K-1,   h_k = f_k(h_{k-1})
        grad_j = sum over these k in j ... j+m of d L_k / d f_j

    A block that units share gets the sum of their gradients, which is the gradient of the sum of
    all losses; each unit has a head of its own. Xiong, Ren & Urtasun 2020 (LoCo, arXiv:2008.01342),
    with any loss instead of the contrastive one: a unit there is two stages of a ResNet and ends
    with every stage, m = 2s-1 with s blocks a stage, so the blocks before the end of the first unit
    have no loss of their own. Laskin et al. 2020 (arXiv:2012.03837) call it overlapping local
    updates, and with s = m+1, where nothing overlaps, chunked ones. With m = 0 it is `Greedy`, with
    m >= K-1 backpropagation.

    The graphs of at most m + 1 blocks and of their heads are alive at a time. Each block runs
    forward once, and backward once for its weights and about m/s times for its input. Compiled
    blocks run as they are written, unless m = 0.

    Args:
        blocks: the network, made with an example where an objective has a head.
        objectives: one, of which every block but the last gets its own copy; or one per block; or
            one per block but the last. Where the last is left out it predicts the labels from the
            network's own output. Those of blocks that end no unit are not used.
        overlap: m, the number of blocks that a loss reaches before its own; 0 or more.
        criterion: the last block's loss where its objective is left out.
        every: s, a unit ends with every s-th block; 1 to m + 1, so that no block is left out.

    Raises:
        InputError: a negative overlap; units between which there is a gap.
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
