"""The learning rate of every step of a training, whose rule may train in phases."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from layerwise.optim import Schedule


class LearningRate:
    """The schedule runs anew in every phase.

    Args:
        lr: what the schedule's factors multiply.
        schedule: per step.
        phases: of the rule, the epochs of each.
        steps_per_epoch: optimizer steps.
    """

    def __init__(self, lr: float, schedule: Schedule, phases: Sequence[int], steps_per_epoch: int):
        self.lr, self.steps_per_epoch = lr, steps_per_epoch
        self.ends = list(itertools.accumulate(phases))
        self.factors = [
            schedule.factor(epochs * steps_per_epoch, steps_per_epoch) for epochs in phases
        ]

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from the training's first."""
        epoch = step // self.steps_per_epoch
        phase = self.phase(epoch)
        start = self.ends[phase - 1] if phase else 0
        return self.lr * self.factors[phase](step - start * self.steps_per_epoch)

    def phase(self, epoch: int) -> int:
        """Number of the phase that an epoch is in."""
        return min(bisect.bisect_right(self.ends, epoch), len(self.ends) - 1)
