"""Local units that overlap: a loss reaches a window of blocks."""

from __future__ import annotations

import contextlib
import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.inplace import starts_in_place
from layerwise.errors import InputError
from layerwise.inputs import detached
from layerwise.objectives import Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy, with_scores
from layerwise.rules.base import Needs, ObjectiveRule, differentiate, one_per_block
from layerwise.rules.calls.as_written import as_written


class Overlap(ObjectiveRule):
    """Greedy learning in units of `overlap + 1` blocks, which share `overlap` with the next.

    With m the overlap, unit k ends at block k and its loss reaches the m blocks before it:

        L_k    = objective_k(h_k),   k = m, m+s, m+2s ... and K-1,   h_k = f_k(h_{k-1})
        grad_j = sum over these k in j ... j+m of d L_k / d f_j

    A block that units share gets the sum of their gradients, those of the sum of all losses; each
    unit has a head of its own. Xiong, Ren & Urtasun 2020 (LoCo, arXiv:2008.01342), with any loss in
    the place of the contrastive one: a unit there is two stages of a ResNet and ends with every
    stage, m = 2s-1 with s blocks a stage, so the blocks before the first unit's end have no loss of
    their own. Laskin et al. 2020 (arXiv:2012.03837) call it overlapping local updates, and with
    s = m+1, where nothing overlaps, chunked ones. With m = 0 it is `Greedy`, with m >= K-1
    backpropagation.

    With `independent` = w every block but the last has a second objective, with a head of its own,
    that reaches nothing but the block. It weighs w, the unit's 1 - w; so does the last block's loss
    as far as it reaches back. With m = 1 and w = 0.001 this is the hierarchical part of HPFF (Su et
    al. 2024, arXiv:2407.05638) and of MLAAN: a gradient window of two blocks, not isolated ones.
    With w = 1 it is `Greedy`.

    Deviations from HPFF's code: one forward pass for both losses, where theirs runs each block
    twice (and moves BatchNorm's statistics twice); the first block has an independent loss, too;
    features are not averaged over patches.

    The graphs of at most m + 1 blocks and of their heads are alive at a time. Each block runs
    forward once, and backward once for its weights and about m/s times for its input. Compiled
    blocks run as they are written, unless m = 0.

    Args:
        blocks: the network, made with an example where an objective has a head.
        objectives: one, of which every block but the last gets its own copy; or one per block; or
            one per block but the last. Where the last is left out it predicts the labels from the
            network's own output. Those of blocks that end no unit are used by `independent` alone.
        overlap: m, how many blocks a loss reaches before its own; 0 or more.
        independent: w, the weight of a block's second loss, which reaches the block alone, in
            [0, 1]; 0 for none.
        criterion: the last block's loss where its objective is left out.
        every: s, a unit ends with every s-th block; 1 to m + 1, so that none is left out.

    Raises:
        InputError: a negative overlap; a weight outside [0, 1]; units between which there is a
            gap.
    """

    needs = Needs.FORWARD | Needs.BACKWARD

    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective | None],
        overlap: int = 1,
        independent: float = 0.0,
        criterion: Criterion = cross_entropy,
        every: int = 1,
    ):
        if overlap < 0:
            raise InputError(f"Overlap(overlap={overlap}): give 0 or more blocks; with 0: Greedy")
        if not 0 <= independent <= 1:
            raise InputError(f"Overlap(independent={independent}): give a weight in [0, 1]")
        if not 1 <= every <= overlap + 1:
            raise InputError(
                f"Overlap(every={every}): losses {every} blocks apart that reach {overlap} before "
                f"their own leave out some; give 1 to {overlap + 1}, or overlap more"
            )
        if independent == 1:  # units would weigh nothing: windows of one block are left
            overlap, independent, every = 0, 0.0, 1
        last = len(blocks) - 1
        self.overlap, self.independent = min(overlap, last), independent
        self.ends = [*range(self.overlap, last, every), last]
        found = one_per_block("Overlap", blocks, objectives, criterion)
        second = {k: copy.deepcopy(found[k]) for k in self.ends[:-1] if independent}
        of_units = [objective if k in self.ends else None for k, objective in enumerate(found)]
        super().__init__(blocks, found if independent else of_units)
        self.independents = nn.ModuleDict()
        for k, objective in second.items():
            if objective is not None:
                objective.number(k, len(blocks))
                self._attach(k, objective, self._unpooled_shape(k), self.independents)
        with_scores(self)

    def auxiliary(self, i: int) -> list[nn.Module]:
        second = [self.independents[str(i)]] if str(i) in self.independents else []
        return [*super().auxiliary(i), *second]

    def step(self, batch: Batch) -> Tensor:
        window: deque[_Open] = deque()  # the blocks that a loss still to come reaches
        h = self.enter(batch)
        for k, block in enumerate(self.blocks):
            leaf = h.detach().requires_grad_() if window else detached(h)
            # The block before still needs its output, which is this one's input.
            copies = bool(window) and starts_in_place(block)
            with as_written(block) if self.overlap else contextlib.nullcontext():
                h = self._run(k, leaf.clone() if copies else leaf, batch)
            # What a network is called with may be several tensors; none of them wants a gradient.
            start = leaf if isinstance(leaf, Tensor) else h.new_empty(0)
            window.append(_Open(k, start, h, list(block.parameters())))
            self._spread(self._learn(window[-1], batch), window)
            while window and not self._awaits(window[0].number, k):
                self._close(window.popleft(), batch)
        return h

    def _awaits(self, j: int, k: int) -> bool:
        """Whether a loss later than block k's reaches block j."""
        return any(k < end <= j + self.overlap for end in self.ends)

    def _learn(self, block: _Open, batch: Batch) -> Tensor | None:
        """Block k's own losses; what they give of its input's gradient, for the blocks before."""
        k, h, w = block.number, block.output, self.independent
        last = k == len(self.blocks) - 1
        first = h[: len(batch.y)] if len(h) > len(batch.y) else h  # views lie below
        unit, second = self._objective(k), None
        if k not in self.ends:
            unit, second = None, unit
        elif str(k) in self.independents:
            second = self._second(k)
        for objective, weight in ((unit, 1.0 if last else 1 - w), (second, w)):
            if objective is None:
                continue
            with self._kept(k, h):
                loss = weight * objective(first, batch)
            if objective is unit and block.input.requires_grad:
                differentiate(loss, batch.scale, inputs=[block.input], retain=True)
            block.loss = loss if block.loss is None else block.loss + loss
            block.weights += objective.parameters()
        batch.unpooled, batch.augmented, batch.views = None, None, {}
        if block.loss is not None:
            batch.finish(k, block.loss)
        reach, block.input.grad = block.input.grad, None
        return (1 - w) * reach if reach is not None and last and w else reach

    def _spread(self, reach: Tensor | None, window: deque[_Open]) -> None:
        """Give the blocks before the last in the window what its loss gives of their outputs."""
        for block in list(window)[-2::-1]:
            if reach is None:
                return
            block.gradient = reach if block.gradient is None else block.gradient + reach
            if block is not window[0]:
                differentiate(block.output, gradient=reach, inputs=[block.input], retain=True)
                reach, block.input.grad = block.input.grad, None

    def _close(self, block: _Open, batch: Batch) -> None:
        """No later loss reaches this block: its weights' gradient, and its graph goes."""
        others = [] if block.gradient is None else [(block.output, block.gradient)]
        if block.loss is not None:
            differentiate(block.loss, batch.scale, inputs=block.weights, also=others)
        elif block.gradient is not None:
            differentiate(block.output, gradient=block.gradient, inputs=block.weights)
        batch.on_block(block.number)

    def _second(self, k: int) -> Objective:
        objective = self.independents[str(k)]
        assert isinstance(objective, Objective)
        return objective


@dataclass(eq=False)
class _Open:
    """A block whose graph is alive.

    Attributes:
        number: of the block.
        input: a leaf.
        output: what the block made of it.
        weights: those of the block and of its heads.
        loss: the block's own, ().
        gradient: of the output, the sum of what later losses gave so far.
    """

    number: int
    input: Tensor
    output: Tensor
    weights: list[nn.Parameter]
    loss: Tensor | None = None
    gradient: Tensor | None = None
