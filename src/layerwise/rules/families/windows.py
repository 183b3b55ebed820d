"""Losses that reach a window of blocks."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.inputs import detached
from layerwise.objectives import Activity, Objective
from layerwise.objectives.batch import Batch, Scale, identity
from layerwise.objectives.classify import with_scores
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.calls.as_written import as_written


class Losses(NamedTuple):
    """The losses at the end of one block.

    Attributes:
        own: what the block and its heads minimise, (), or None.
        reaching: what the blocks before it in the window minimise, (), or None.
        scores: the class scores, detached, or None.
        share: of `reaching`'s gradient that the blocks before get.
    """

    own: Tensor | None = None
    reaching: Tensor | None = None
    scores: Tensor | None = None
    share: float = 1.0


class WindowRule(Rule):
    """Units of blocks that overlap. Unit k ends at block k, and its loss reaches the m blocks
    before it:

        grad_j = sum over the ends k in j ... j+m of d L_k / d f_j,    h_k = f_k(h_{k-1})

    The ends are m, m+s, m+2s ... and the last block. The graphs of at most m + 1 blocks and of
    their heads are alive at a time. Each block runs forward once, and backward once for its weights
    and about m/s times for its input. Compiled blocks run as they are written, unless m = 0.

    Args:
        blocks: the network.
        objectives: one for each block, or None.
        overlap: m.
        every: s.

    Attributes:
        ends: the numbers of the blocks that end a unit.
    """

    needs = Needs.FORWARD | Needs.BACKWARD

    def __init__(
        self,
        blocks: Blocks,
        objectives: Sequence[Objective | None],
        overlap: int,
        every: int,
    ):
        super().__init__(blocks, objectives)
        self.ends = ends(len(blocks), overlap, every)
        self.overlap = min(overlap, len(blocks) - 1)
        with_scores(self)

    @abstractmethod
    def losses(self, k: int, activity: Activity, batch: Batch) -> Losses:
        """The losses at the end of block k."""

    def step(self, batch: Batch) -> Tensor:
        window: deque[_Open] = deque()  # the blocks that a later loss still reaches
        h = self.reading.first_input(batch)
        for k, block in enumerate(self.blocks):
            before = h.detach().requires_grad_() if window else detached(h)
            with as_written(block) if self.overlap else contextlib.nullcontext():
                # The block before still needs its output, which is this one's input.
                h, activity = self.run(k, before, batch, keep=bool(window))
            losses = self.losses(k, activity, batch)
            window.append(_Open(k, before, h, losses))
            self._reach_back(window, batch)
            while window and not self._awaits(window[0].number, k):
                self._close(window.popleft(), batch)
        return h

    def _awaits(self, j: int, k: int) -> bool:
        """Whether a loss later than block k's reaches block j."""
        return any(k < end <= j + self.overlap for end in self.ends)

    def _reach_back(self, window: deque[_Open], batch: Batch) -> None:
        """Give the blocks in the window the gradient of the newest block's loss."""
        *before, newest = window
        losses = newest.losses
        if not before or losses.reaching is None:
            return
        gradient = newest.pull(losses.reaching, batch.scale)
        if gradient is not None and losses.share != 1:
            gradient = losses.share * gradient
        for block in reversed(before):
            if gradient is None:
                return
            so_far = block.gradient
            block.gradient = gradient if so_far is None else so_far + gradient
            if block is not window[0]:
                gradient = block.pull(block.output, gradient=gradient)

    def _close(self, block: _Open, batch: Batch) -> None:
        """No later loss reaches this block: its weights get their gradient, and its graph goes."""
        k, (own, _, scores, _) = block.number, block.losses
        weights = [*self.blocks[k].parameters(), *self._head_parameters(k)]
        others = [] if block.gradient is None else [(block.output, block.gradient)]
        if own is not None:
            differentiate(own, batch.scale, inputs=weights, also=others)
        elif block.gradient is not None:
            differentiate(block.output, gradient=block.gradient, inputs=weights)
        batch.done(k, own, scores)

    def _head_parameters(self, k: int) -> list[nn.Parameter]:
        return [p for module in self.auxiliary(k) for p in module.parameters()]


@dataclass(eq=False)
class _Open:
    """A block whose graph is alive.

    Attributes:
        number: of the block.
        input: its input; a leaf that requires grad, except in the first block of the window.
        output: the block's output.
        losses: at its end.
        gradient: with respect to the output, the sum of what later losses gave so far.
    """

    number: int
    input: Any
    output: Tensor
    losses: Losses
    gradient: Tensor | None = None

    def pull(
        self, loss: Tensor, scale: Scale = identity, gradient: Tensor | None = None
    ) -> Tensor | None:
        """The gradient of a loss with respect to the block's input; the graph stays. The arguments
        are those of `differentiate`."""
        differentiate(loss, scale, gradient, inputs=[self.input], retain=True)
        found, self.input.grad = self.input.grad, None
        return found


def ends(blocks: int, overlap: int, every: int) -> list[int]:
    """The blocks, of so many, that end a unit: m, m+s, m+2s ... and the last one."""
    last = blocks - 1
    return [*range(min(overlap, last), last, every), last]


def check_units(call: str, overlap: int, every: int) -> None:
    """Refuse units that leave out a block.

    Raises:
        InputError: a negative overlap; units between which there is a gap.
    """
    if overlap < 0:
        raise InputError(f"{call}(overlap={overlap}): give 0 or more blocks; with 0: Greedy")
    if not 1 <= every <= overlap + 1:
        raise InputError(
            f"{call}(every={every}): losses {every} blocks apart that reach {overlap} before "
            f"their own leave out some; give 1 to {overlap + 1}, or overlap more"
        )
