"""Rules whose local losses reach a window of several blocks."""

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
        own: the loss that the block and its heads minimise, (), or None.
        reaching: the loss that the blocks before it in the window minimise, (), or None.
        scores: the class scores, (B, C), detached, or None.
        share: factor of the gradient of `reaching`.
    """

    own: Tensor | None = None
    reaching: Tensor | None = None
    scores: Tensor | None = None
    share: float = 1.0


class WindowRule(Rule):
    """The base class of rules with overlapping units of blocks. Unit k ends at block k, and its
    loss L_k reaches the m blocks before it:

        grad_j = sum over the ends k in j ... j+m of d L_k / d f_j,    h_k = f_k(h_{k-1})

    The ends are m, m+s, m+2s ... and the last block. At most m + 1 graphs of blocks, with those of
    their heads, exist at a time. Each block runs forward once, backward once for its weights, and
    backward about m/s times for its input. Compiled blocks run without compilation, unless m = 0.

    Args:
        blocks: the network.
        objectives: one objective or None for each block.
        overlap: m.
        every: s.

    Attributes:
        ends: the numbers of the blocks that end a unit.
        overlap: m, or the number of blocks before the last if that is smaller.

    Raises:
        InputError: as in `Rule`.
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
        """The losses at the end of block k.

        Args:
            k: number of the block.
            activity: what the block's objective reads.
            batch: the step's batch.
        """

    def step(self, batch: Batch) -> Tensor:
        window: deque[_Open] = deque()  # the blocks that a later loss still reaches
        h = self.reading.first_input(batch)
        for k, block in enumerate(self.blocks):
            before = h.detach().requires_grad_() if window else detached(h)
            with as_written(block) if self.overlap else contextlib.nullcontext():
                # The input is the output of the block before, which still needs it.
                h, activity = self.run(k, before, batch, keep=bool(window))
            losses = self.losses(k, activity, batch)
            window.append(_Open(k, before, h, losses))
            self._reach_back(window, batch)
            while window and not self._awaits(window[0].number, k):
                self._close(window.popleft(), batch)
        return h

    def _awaits(self, j: int, k: int) -> bool:
        """Whether the loss of a block after block k reaches block j."""
        return any(k < end <= j + self.overlap for end in self.ends)

    def _reach_back(self, window: deque[_Open], batch: Batch) -> None:
        """Add the gradient of the newest block's loss to the blocks before it in the window."""
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
        """Finish a block that no later loss reaches: its weights get their gradient, and its graph
        is freed."""
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
    """A block whose graph still exists.

    Attributes:
        number: number of the block.
        input: the block's input; a leaf that requires grad, except in the first block of a window.
        output: the block's output.
        losses: the losses at its end.
        gradient: the gradient with respect to the output, summed over the later losses so far.
    """

    number: int
    input: Any
    output: Tensor
    losses: Losses
    gradient: Tensor | None = None

    def pull(
        self, loss: Tensor, scale: Scale = identity, gradient: Tensor | None = None
    ) -> Tensor | None:
        """The gradient of a loss with respect to the block's input; the graph is kept. The
        arguments are those of `differentiate`."""
        differentiate(loss, scale, gradient, inputs=[self.input], retain=True)
        found, self.input.grad = self.input.grad, None
        return found


def ends(blocks: int, overlap: int, every: int) -> list[int]:
    """The numbers of the blocks that end a unit: m, m+s, m+2s ... and the last one.

    Args:
        blocks: number of blocks.
        overlap: m.
        every: s.
    """
    last = blocks - 1
    return [*range(min(overlap, last), last, every), last]


def check_units(call: str, overlap: int, every: int) -> None:
    """Refuse units that leave out a block.

    Args:
        call: name of the rule, for errors.
        overlap: m.
        every: s.

    Raises:
        InputError: a negative overlap; a gap between two units.
    """
    if overlap < 0:
        raise InputError(f"{call}(overlap={overlap}): give 0 or more blocks; with 0: Greedy")
    if not 1 <= every <= overlap + 1:
        raise InputError(
            f"{call}(every={every}): losses that are {every} blocks apart and reach {overlap} "
            f"blocks back leave out some blocks; give 1 to {overlap + 1}, or a larger overlap"
        )
