"""All blocks in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from layerwise.batch import Report, identity
from layerwise.rule import OnBlock, Rule, Scale
from layerwise.tally import Tally


class Serial:
    """One process that has every block: the rule's own loop.

    What a trainer asks of a runtime; `LayerParallel` answers the same.

    Attributes:
        blocks: numbers of the blocks that this process trains.
        leader: whether this process keeps the run's files.
        reads_input: whether this process needs the images, and not the labels alone.
    """

    leader = True
    reads_input = True

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
        stops: bool = False,
    ) -> Report:
        """`rule.backward(x, y)`, or this process's part of it; with `stops` the last for now."""
        assert x is not None
        return self.rule.backward(x, y, scale=scale, on_block=on_block)

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

    def add_up(self, tally: Tally) -> None:
        """Make `tally` that of all blocks, everywhere."""

    def close(self) -> None:
        """Training is over."""
