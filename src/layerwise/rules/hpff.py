"""Overlapping units, and an independent loss for every block."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives import Activity, Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy, with_scores
from layerwise.rules.base.objectives import OfBlocks, one_per_block
from layerwise.rules.families.windows import Losses, WindowRule, check_units, ends


class HPFF(WindowRule):
    """Hierarchical locally supervised learning: the losses of `Overlap`, and for every block except
    the last an independent loss that reaches only this block.

    Su et al. 2024 (HPFF, arXiv:2407.05638), the hierarchical part, which MLAAN has, too. The units
    are those of `Overlap`. With m the overlap, w the weight, L_k the loss of the unit that ends at
    block k, and I_k the independent loss of block k, from a head of its own:

        grad_j = w d I_j / d f_j + (1-w) sum over the ends k in j ... j+m of d L_k / d f_j
        grad_K = d L_K / d f_K

    With w = 0 it is `Overlap`; with w = 1 it is `Greedy`. With one block it is backpropagation.

    Deviations from the authors' code: both losses share one forward pass (theirs runs each block
    twice, and so moves BatchNorm's statistics twice). The first block has an independent loss, too.
    Features are not averaged over patches.

    Args:
        blocks: the network's blocks; made with an example input if an objective has a head, because
            heads take their shapes from it.
        objectives: the objectives of the blocks, given as for `Overlap`. A block that ends a unit
            has two copies of its objective, one for each loss. For any other block the objective is
            its independent loss.
        overlap: m, the number of earlier blocks that a loss also reaches; 0 or more.
        independent: w, the weight of the independent losses, in [0, 1]. The authors use 0.001 with
            m = 1, a window of two blocks.
        criterion: the loss function of the last block if `objectives` leaves it out: takes class
            scores and labels, returns a scalar.
        every: s, the distance between the ends of units in blocks, from 1 to m + 1.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example and an
            objective has a head; `objectives` has the wrong length, contains something other than
            objectives, or leaves the last block with None; a negative overlap; a weight outside [0,
            1]; an `every` that leaves a gap between units.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective | None],
        overlap: int = 1,
        independent: float = 0.001,
        criterion: Criterion = cross_entropy,
        every: int = 1,
    ):
        check_units("HPFF", overlap, every)
        if not 0 <= independent <= 1:
            raise InputError(f"HPFF(independent={independent}): give a weight in [0, 1]")
        if independent == 1:  # units have no weight: every block is a unit of its own
            overlap, every, independent = 0, 1, 0.0
        found = one_per_block("HPFF", blocks, objectives, criterion)
        others = [copy.deepcopy(objective) for objective in found]
        of_units = ends(len(blocks), overlap, every)
        used = [o if independent or k in of_units else None for k, o in enumerate(found)]
        super().__init__(blocks, used, overlap, every)
        self.independent = independent
        self.independents = OfBlocks[Objective]()  # I_k of the blocks that end a unit
        for k, objective in enumerate(others[:-1]):
            if objective is not None and independent and k in self.ends:
                objective.number(k, len(blocks))
                self.independents[k] = self.placed(k, objective)
        with_scores(self)

    def auxiliary(self, k: int) -> list[nn.Module]:
        independent = self.independents.get(k)
        return [*super().auxiliary(k), *([] if independent is None else [independent])]

    def losses(self, k: int, activity: Activity, batch: Batch) -> Losses:
        w = self.independent
        if k not in self.objectives:
            return Losses()
        loss, scores = self.loss(k, activity, batch)
        if k == len(self.blocks) - 1:
            return Losses(own=loss, reaching=loss, scores=scores, share=1 - w)
        if k not in self.ends:
            return Losses(own=w * loss, scores=scores)
        unit = (1 - w) * loss
        if k not in self.independents:
            return Losses(own=unit, reaching=unit, scores=scores)
        independent, _ = self.loss(k, activity, batch, self.independents[k])
        return Losses(own=unit + w * independent, reaching=unit, scores=scores)
