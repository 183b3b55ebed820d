"""Replicas: every process has all blocks and trains them on its part of every batch."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from layerwise.rules.base import Report, Rule
from layerwise.runs.metrics import Metrics
from layerwise.runtime.batchnorm import share_statistics
from layerwise.runtime.control import Control, backend_of_gradients, device_of, new_group
from layerwise.runtime.reducer import Reducer
from layerwise.runtime.runtime import StepOptions
from layerwise.runtime.serial import whole_step


class DataParallel:
    """The replica of this process, of any rule. A `Runtime`.

    Every rank of the default process group makes one, on its own part of the same batches
    (`Loader(part=...)`), and calls the same methods in the same order. A block's gradients are
    averaged over the replicas while the next block runs. The last rank is the leader.

    Args:
        rule: the rule, with all blocks.
        sync_batchnorm: share BatchNorm's statistics of a batch over the replicas, on accelerators;
            otherwise each replica has its own, and the run keeps those of the last.
    """

    reads_input = True

    def __init__(self, rule: Rule, sync_batchnorm: bool = False):
        self.rule, self.blocks = rule, range(len(rule.blocks))
        rule.synchronised = True
        self.replica, count = dist.get_rank(), dist.get_world_size()
        self.leader = self.counts = self.replica == count - 1
        self._control = Control(stages=1)
        backend = backend_of_gradients(device_of(rule))
        self._reducer = Reducer(new_group(None, backend))
        self._stops = False
        if sync_batchnorm:
            share_statistics(rule, new_group(None, backend))

    def backward(
        self,
        x: Tensor | None,
        y: Tensor,
        options: StepOptions = StepOptions(),
    ) -> Report:
        assert x is not None
        self._stops = self._control.any(options.stops) if options.completes else False

        def done(k: int) -> None:
            then = functools.partial(options.on_block, k)
            if options.completes:
                self._reducer.add(self.rule.parameters_of(k), then)
            else:
                then()

        report = whole_step(self.rule, x, y, options, done)
        self._reducer.finish()
        return report

    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        assert x is not None
        self._stops = False  # replicas evaluate different numbers of batches: they stop afterwards
        return rule.exits(x)

    def stops(self, asked: bool) -> bool:
        return self._stops

    def agree(self, stops: bool) -> bool:
        return stops

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        return dict(state) if self.leader else None  # all replicas have the same state

    def add_up(self, tally: Metrics) -> None:
        self._control.add_up(tally)

    def close(self) -> None:
        self._control.close()
