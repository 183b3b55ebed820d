"""The learning rate of every step of a training."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import replace

from layerwise.trainer.optim import OfScheduler, Schedule


class LearningRate:
    """The learning rate of every step. The schedule starts again in each phase of the rule.

    Args:
        lr: the learning rate that the schedule's factors multiply.
        schedule: a factor per step.
        phases: epochs of each of the rule's phases.
        steps_per_epoch: optimizer steps of an epoch.
    """

    def __init__(self, lr: float, schedule: Schedule, phases: Sequence[int], steps_per_epoch: int):
        if isinstance(schedule, OfScheduler):
            schedule = replace(schedule, lr=lr)
        self.lr, self.phases, self.steps_per_epoch = lr, phases, steps_per_epoch
        self.factors = [
            schedule.factor(epochs * steps_per_epoch, steps_per_epoch) for epochs in phases
        ]

    def at(self, step: int) -> float:
        """The learning rate of a step (from 0, over the whole training)."""
        epoch = step // self.steps_per_epoch
        phase = self.phase(epoch)
        start = sum(self.phases[:phase])
        return self.lr * self.factors[phase](step - start * self.steps_per_epoch)

    def phase(self, epoch: int) -> int:
        """Number of an epoch's phase."""
        return phase_of(epoch, self.phases)


def phase_of(epoch: int, phases: Sequence[int]) -> int:
    """Number of an epoch's phase; both are counted from 0.

    Args:
        epoch: an epoch after the last phase belongs to the last, a negative one to the first.
        phases: epochs of each phase.
    """
    ends = list(itertools.accumulate(phases))
    return min(bisect.bisect_right(ends, epoch), len(ends) - 1)
