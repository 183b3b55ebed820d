"""Planning stages: dividing blocks evenly by time, and what the stages will cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.blocks.balance import partition
from layerwise.blocks.cost import saved_by_each
from layerwise.blocks.unchanged import unchanged
from layerwise.costs.blocks import without_gradients
from layerwise.errors import InputError
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.rules.base import Done, LocalRule, Rule, differentiate


def block_seconds(
    rule: Rule,
    x: Tensor,
    y: Tensor,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """The time of each block's part of a step, its head and objective included, in seconds.

    It is the median over several rounds, after one round of warm-up. The rule is left unchanged. Of
    a rule that is no `LocalRule`, it is the time of backpropagation through the block alone.

    Args:
        rule: on its device.
        x: a batch, (B, ...), or its augmented views, (V B, ...).
        y: its labels, (B,) or (B, T).
        rounds: number of measured rounds.
        clock: gives seconds; on a busy machine `time.process_time`, which counts CPU time.
    """

    def now() -> float:
        if x.device.type != "cpu":
            torch.accelerator.synchronize(x.device)
        return clock()

    count = len(rule.blocks)
    seconds: list[list[float]] = [[] for _ in range(count)]
    with without_gradients(rule), unchanged(rule):
        rule.train()
        for _ in range(1 + rounds):
            batch = Batch(x, y)
            with rule.blocks.passes(batch.augmented) as batch.passes:
                if not isinstance(rule, LocalRule):
                    _through_each(rule, batch, seconds, now)
                    continue
                before, done = None, Done(rule.first_input(batch))
                for k in range(count):
                    start = now()
                    before, done = done, rule.local_step(k, done.out, batch, *done.carry)
                    seconds[k].append(now() - start)
                    if k:
                        rule.learned(k - 1, before, done.back, batch)
                        seconds[k - 1][-1] += now() - start - seconds[k][-1]
                    for p in rule.parameters_of(k):
                        p.grad = None
    return [statistics.median(of_block[1:]) for of_block in seconds]


def _through_each(
    rule: Rule, batch: Batch, seconds: list[list[float]], now: Callable[[], float]
) -> None:
    """Run a batch forward and back through one block after the other; append the times."""
    h = rule.reading.first_input(batch)
    for k, so_far in enumerate(seconds):
        if k:
            assert isinstance(h, Tensor)
            h = h.detach().requires_grad_(h.is_floating_point())
        start = now()
        out = batch.run(k, h, keep=k > 0)
        if k == len(seconds) - 1:
            differentiate(rule.loss(k, Activity(out), batch)[0])
        else:
            differentiate(out, gradient=torch.ones_like(out))
        so_far.append(now() - start)
        h = out
        for p in rule.parameters_of(k):
            p.grad = None


def stage_starts(seconds: list[float], stages: int) -> list[int]:
    """The number of each stage's first block, chosen so that the slowest stage is fastest.

    Args:
        seconds: of each block.
        stages: number of stages.

    Raises:
        InputError: `stages` is below 1, or above the number of blocks.
    """
    if not 1 <= stages <= len(seconds):
        raise InputError(
            f"--stages {stages}: the network is cut into {len(seconds)} blocks; give 1 to "
            f"{len(seconds)} stages, or cut it into more blocks"
        )
    return partition([max(1, round(s * 1e9)) for s in seconds], stages)


@dataclass(frozen=True)
class Stage:
    """One stage of a plan, and its costs.

    Attributes:
        blocks: numbers of its blocks.
        seconds: of a step on one batch.
        parameters: of its blocks and their heads.
        activation_bytes: saved for the backward pass of its largest block, per batch.
        sends_bytes: sent to the next stage, per batch; 0 for the last stage.
    """

    blocks: range
    seconds: float
    parameters: int
    activation_bytes: int
    sends_bytes: int


@dataclass(frozen=True)
class Plan:
    """A division of blocks into stages, and its expected speed.

    Attributes:
        stages: in order.
        batch_size: of the measured batch.
    """

    stages: tuple[Stage, ...]
    batch_size: int

    @classmethod
    def of(
        cls,
        rule: Rule,
        x: Tensor,
        y: Tensor,
        stages: int,
        rounds: int = 3,
        seconds: list[float] | None = None,
    ) -> Plan:
        """Measure a rule on a batch, unless its blocks' `seconds` are given; divide its blocks."""
        seconds = block_seconds(rule, x, y, rounds) if seconds is None else seconds
        starts = stage_starts(seconds, stages)
        ends = [*starts[1:], len(seconds)]
        shapes = rule.blocks.shapes
        assert shapes is not None, "blocks made by `cut` know their shapes"
        kept = saved_by_each(rule.blocks, x)
        return cls(
            tuple(
                Stage(
                    range(start, end),
                    sum(seconds[start:end]),
                    sum(p.numel() for i in range(start, end) for p in rule.parameters_of(i)),
                    max(kept[start:end]),
                    x.element_size() * len(x) * math.prod(shapes[end - 1]) if end < ends[-1] else 0,
                )
                for start, end in zip(starts, ends, strict=True)
            ),
            len(y),
        )

    @property
    def serial_seconds(self) -> float:
        """The time of a step of all blocks in one process."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def images_per_s(self) -> float:
        """The throughput once all stages are busy; the slowest stage decides."""
        return self.batch_size / max(stage.seconds for stage in self.stages)

    @property
    def speedup(self) -> float:
        """The speed-up over one process; at best the number of stages."""
        return self.serial_seconds / max(stage.seconds for stage in self.stages)

    def seconds_for(self, batches: int, depth: int = 2, bytes_per_s: float = math.inf) -> float:
        """The simulated time from the start of the first batch to the end of the last one.

        A stage begins a batch when it has finished the previous one and the batch has arrived. It
        waits with its output while `depth` outputs are on their way and `depth` more wait in front
        of the next stage.

        Args:
            batches: number of batches.
            depth: as in `LayerParallel`.
            bytes_per_s: bandwidth of a link.
        """
        ended = [[0.0] * batches for _ in self.stages]
        arrived = [[0.0] * batches for _ in self.stages]  # a link carries one message at a time
        room = 2 * depth + 1  # on their way, taken in advance, and one held by the receiving thread
        for t in range(batches):
            for r, stage in enumerate(self.stages):
                free = ended[r][t - 1] if t else 0.0
                if r:
                    sent = max(ended[r - 1][t], arrived[r][t - 1] if t else 0.0)
                    arrived[r][t] = sent + self.stages[r - 1].sends_bytes / bytes_per_s
                    free = max(free, arrived[r][t])
                if r + 1 < len(self.stages) and t >= room:
                    free = max(free, ended[r + 1][t - room])
                ended[r][t] = free + stage.seconds
        return ended[-1][-1]
