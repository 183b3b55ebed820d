"""Schedules: a factor of the learning rate for every step of a training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from layerwise.arguments import at_least, check_fields, positive, share, shortened
from layerwise.errors import InputError, reason
from layerwise.trainer.optim.optimizers import called

Factor = Callable[[int], float]  # step -> factor of the learning rate


class Schedule(ABC):
    """A factor of the learning rate over training."""

    @abstractmethod
    def factor(self, steps: int, steps_per_epoch: int) -> Factor:
        """The factor at each step of a training of `steps` steps."""


@dataclass(frozen=True)
class OfScheduler(Schedule):
    """What one of PyTorch's schedulers does to the learning rate. Momentum is not cycled.

    Args:
        make: a function of an optimizer that gives a scheduler, such as
            `functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10)`.
        each: whether it is stepped after each epoch or after each step; null: after each step for
            `OneCycleLR` and `CyclicLR`, after each epoch for all others.
        lr: the optimizer's learning rate; `LearningRate` fills it in.
        remedy: the end of an error.
    """

    make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
    each: Literal["epoch", "step"] | None = None
    lr: float = 1.0
    remedy: str = (
        "give a schedule of layerwise, such as trainer.optim.Cosine(warmup=1), or a function of "
        "the optimizer alone, such as functools.partial(torch.optim.lr_scheduler.StepLR, "
        "step_size=10)"
    )

    def scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        """The scheduler of an optimizer of one weight.

        Raises:
            InputError: the function makes none.
        """
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=self.lr, momentum=0.9)
        try:
            made = self.make(optimizer)
        except Exception as error:  # whatever a scheduler raises for options that it does not take
            raise self._refused(reason(error)) from error
        if not isinstance(made, torch.optim.lr_scheduler.LRScheduler):
            raise self._refused(f"it makes {shortened(made)}")
        return made

    def factor(self, steps: int, steps_per_epoch: int) -> Factor:
        made, by_batch = self.scheduler(), ("OneCycleLR", "CyclicLR")
        each = self.each or ("step" if type(made).__name__ in by_batch else "epoch")
        length = 1 if each == "step" else steps_per_epoch
        factors: list[float] = []
        made.optimizer.step()  # which PyTorch expects before the schedule's first
        try:
            for n in range(math.ceil(steps / length)):
                if n:
                    made.step()
                factors.append(float(made.optimizer.param_groups[0]["lr"]) / (self.lr or 1.0))
        except Exception as error:  # of one that steps by the loss, or of too few steps
            raise self._refused(f"stepped after each {each}, {reason(error)}") from error
        return lambda step: factors[min(step // length, len(factors) - 1)]

    def _refused(self, why: str) -> InputError:
        return InputError(f"schedule {called(self.make)}: {why}; {self.remedy}")


def _warmed_up(after: Callable[[float], float], warmup_steps: float, steps: int) -> Factor:
    """Linear from zero over `warmup_steps`, then `after`, a function of the share of the remaining
    steps that is done."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return after((step - warmup_steps) / max(1.0, steps - warmup_steps))

    return factor


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate throughout.

    Args:
        warmup: epochs of linear growth at the start.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "Constant")
        at_least(0, "Constant", warmup=self.warmup)

    def factor(self, steps: int, steps_per_epoch: int) -> Factor:
        return _warmed_up(lambda done: 1.0, self.warmup * steps_per_epoch, steps)


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from the learning rate to zero.

    Args:
        warmup: epochs of linear growth at the start.
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "Linear")
        at_least(0, "Linear", warmup=self.warmup)

    def factor(self, steps: int, steps_per_epoch: int) -> Factor:
        return _warmed_up(lambda done: max(0.0, 1.0 - done), self.warmup * steps_per_epoch, steps)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the learning rate to zero, or to `final`.

    Args:
        warmup: epochs of linear growth at the start.
        final: the last factor.
    """

    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "Cosine")
        at_least(0, "Cosine", warmup=self.warmup, final=self.final)

    def factor(self, steps: int, steps_per_epoch: int) -> Factor:
        def after(done: float) -> float:
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

        return _warmed_up(after, self.warmup * steps_per_epoch, steps)


@dataclass(frozen=True)
class Step(Schedule):
    """Multiply the learning rate at given shares of training.

    Args:
        at: points of change, as shares of training after the warm-up.
        gamma: factor at each of them.
        warmup: epochs of linear growth at the start.
    """

    at: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "Step")
        positive("Step", gamma=self.gamma)
        at_least(0, "Step", warmup=self.warmup)
        if not all(0 <= share <= 1 for share in self.at):
            raise InputError(f"Step(at={self.at}): give shares of training, 0 to 1")

    def factor(self, steps: int, steps_per_epoch: int) -> Factor:
        def after(done: float) -> float:
            return self.gamma ** sum(done >= share for share in self.at)

        return _warmed_up(after, self.warmup * steps_per_epoch, steps)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up and down once, both along a cosine (Smith & Topin 2018, arXiv:1708.07120).

    Deviation: momentum is not cycled.

    Args:
        up: share of training in which the learning rate grows.
        start: the first factor.
        final: the last factor.
    """

    up: float = 0.3
    start: float = 0.04
    final: float = 1e-4

    def __post_init__(self) -> None:
        check_fields(self, "OneCycle")
        share("OneCycle", up=self.up)
        at_least(0, "OneCycle", start=self.start, final=self.final)

    def factor(self, steps: int, steps_per_epoch: int) -> Factor:
        def factor(step: int) -> float:
            done = step / max(1, steps)
            if done < self.up:
                low, share = self.start, 1 - done / self.up
            else:
                low, share = self.final, (done - self.up) / max(1e-9, 1 - self.up)
            return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

        return factor
