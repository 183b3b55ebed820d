"""Every process has all blocks, and a part of every batch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from layerwise.objectives.batch import Report, identity
from layerwise.rules.base import OnBlock, Rule, Scale
from layerwise.runs.metrics import Metrics
from layerwise.runtime.batchnorm import share_statistics
from layerwise.runtime.control import Control, new_group
from layerwise.runtime.reducer import Reducer, nothing


class DataParallel:
    """The replica of this process, of any rule.

    Every rank of the default process group makes one, on its own part of the same batches
    (`Loader(part=...)`), and calls the same methods in the same order. A block's gradients are
    averaged over the replicas while the next block runs.

    Args:
        rule: with all blocks.
        sync_batchnorm: share BatchNorm's statistics of a batch, on accelerators; else they are each
            replica's own, and the run keeps the last one's.

    Attributes:
        blocks: numbers of the blocks: all.
        leader: whether this process keeps the run's files: the last one.
        reads_input: whether this process needs the images.
        replica: its number.
    """

    reads_input = True

    def __init__(self, rule: Rule, sync_batchnorm: bool = False):
        self.rule, self.blocks = rule, range(len(rule.blocks))
        rule.synchronised = True
        self.replica, count = dist.get_rank(), dist.get_world_size()
        self.leader = self.counts = self.replica == count - 1
        self._control = Control(stages=1)
        self._reducer = Reducer(new_group(None))
        self._stops = False
        if sync_batchnorm:
            share_statistics(rule, new_group(None))

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
        """`rule.backward(x, y)`; `completes` says whether gradients are to be averaged now, or more
        are to come first."""
        assert x is not None
        self._stops = self._control.any(stops) if completes else False
        if before_block is not None:
            before_block(0)

        def done(i: int) -> None:
            then = functools.partial(on_block, i) if on_block is not None else nothing
            if completes:
                self._reducer.add(self.rule.parameters_of(i), then)
            else:
                then()
            if before_block is not None:
                before_block(i + 1)

        report = self.rule.backward(x, y, scale=scale, on_block=done)
        self._reducer.finish()
        return report

    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        """`rule.exits(x)`."""
        assert x is not None
        self._stops = False  # replicas have unlike numbers of batches: after evaluation then
        return rule.exits(x)

    def stops(self, asked: bool) -> bool:
        """Whether all stop after the batch just done."""
        return self._stops

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """The leader's state: the replicas are alike."""
        return dict(state) if self.leader else None

    def add_up(self, tally: Metrics) -> None:
        """Make `tally` that of all replicas, everywhere."""
        self._control.add_up(tally)

    def close(self) -> None:
        """Training is over."""
        self._control.close()
