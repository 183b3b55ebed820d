"""The learning rate of every step of a training, whose rule may train in phases."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from layerwise.trainer.optim import Schedule


class LearningRate:
    """The schedule runs anew in every phase.

    Args:
        lr: what the schedule's factors multiply.
        schedule: per step.
        phases: of the rule, the epochs of each.
        steps_per_epoch: optimizer steps.
    """

    def __init__(self, lr: float, schedule: Schedule, phases: Sequence[int], steps_per_epoch: int):
        self.lr, self.phases, self.steps_per_epoch = lr, phases, steps_per_epoch
        self.factors = [
            schedule.factor(epochs * steps_per_epoch, steps_per_epoch) for epochs in phases
        ]

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from the training's first."""
        epoch = step // self.steps_per_epoch
        phase = self.phase(epoch)
        start = sum(self.phases[:phase])
        return self.lr * self.factors[phase](step - start * self.steps_per_epoch)

    def phase(self, epoch: int) -> int:
        """Number of the phase that an epoch is in."""
        return phase_of(epoch, self.phases)


def phase_of(epoch: int, phases: Sequence[int]) -> int:
    """Number of the phase that an epoch is in, both from 0.

    Args:
        epoch: after the last phase it counts as that one's, before the first as the first's.
        phases: the epochs of each.
    """
    ends = list(itertools.accumulate(phases))
    return min(bisect.bisect_right(ends, epoch), len(ends) - 1)
