"""All blocks in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from layerwise.objectives.batch import Report, identity
from layerwise.rules.base import OnBlock, Rule, Scale
from layerwise.runs.metrics import Metrics


class Serial:
    """One process that has every block: the rule's own loop.

    What a trainer asks of a runtime; `LayerParallel` answers the same.

    Attributes:
        blocks: numbers of the blocks that this process trains.
        leader: whether this process keeps the run's files.
        reads_input: whether this process needs the images, and not the labels alone.
        replica: which part of every batch this process trains on.
        counts: whether what a run has counted so far is kept here, and not by another replica.
    """

    leader = True
    reads_input = True
    replica = 0
    counts = True

    def __init__(self, rule: Rule):
        self.rule = rule
        self.blocks = range(len(rule.blocks))

    def backward(
        self,
        x: Tensor | None,
        y: Tensor,
        *,
        scale: Scale = identity,
        on_block: OnBlock | None = None,
        before_block: OnBlock | None = None,
        stops: bool = False,
        completes: bool = True,
    ) -> Report:
        """`rule.backward(x, y)`, or this process's part of it.

        Args:
            x: a batch, (B, ...); None where this process does without.
            y: its labels, (B,) or (B, T).
            scale: as in `Rule.backward`.
            on_block: as in `Rule.backward`.
            before_block: called with a block's number before it runs.
            stops: whether this batch is the last for now.
            completes: whether the gradients are complete after this batch; else more are to come.
        """
        assert x is not None
        if before_block is not None:
            before_block(0)

        def done(i: int) -> None:
            if on_block is not None:
                on_block(i)
            if before_block is not None:
                before_block(i + 1)

        return self.rule.backward(x, y, scale=scale, on_block=done)

    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        """`rule.exits(x)`, or this process's part of it; `rule` may be an average of the trained
        one's weights."""
        assert x is not None
        return rule.exits(x)

    def stops(self, asked: bool) -> bool:
        """Whether all stop after the batch just done; `asked` is what this process was told."""
        return asked

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The states of all processes as one; None but for the leader."""
        return dict(state)

    def add_up(self, tally: Metrics) -> None:
        """Make `tally` that of all blocks, everywhere."""

    def close(self) -> None:
        """Training is over."""
