"""From gradients to weights: optimizers, learning rate, loss scale, clipping, averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from layerwise.rules.base import Rule, early_steps
from layerwise.trainer.learning_rate import LearningRate
from layerwise.trainer.optim import Optimizer, Schedule
from layerwise.trainer.settings import Settings


class Stepper:
    """Steps the blocks of a rule that are in this process.

    Args:
        rule: on its device.
        blocks: numbers of the blocks in this process.
        optimizer: recipe of the optimizer.
        schedule: of its learning rate, per step.
        settings: accumulation, clipping, averaging and step_per_block.
        batches: batches of an epoch.
        scaler: scales the loss under float16; None otherwise.
    """

    def __init__(
        self,
        rule: Rule,
        blocks: Iterable[int],
        *,
        optimizer: Optimizer,
        schedule: Schedule,
        settings: Settings,
        batches: int,
        scaler: torch.amp.GradScaler | None,
    ):
        self.rule, self.settings, self.scaler = rule, settings, scaler
        of_blocks = {i: rule.parameters_of(i) for i in blocks}
        parts = (
            of_blocks
            if settings.step_per_block
            else {0: [p for parameters in of_blocks.values() for p in parameters]}
        )
        self.optimizers = {
            i: optimizer(part) if any(p.requires_grad for p in part) else None
            for i, part in parts.items()
        }
        self.steps_per_epoch = math.ceil(batches / settings.accumulate)
        self.rate = LearningRate(
            optimizer.lr,  # type: ignore[attr-defined]
            schedule,
            rule.phases(settings.epochs),
            self.steps_per_epoch,
        )
        self.ema = (
            AveragedModel(rule, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
            if settings.ema is not None
            else None
        )

    @property
    def evaluated(self) -> Rule:
        """The rule that is evaluated: the one with averaged weights where there is one."""
        return self.rule if self.ema is None else self.ema.module  # type: ignore[return-value]

    def scaled(self, loss: Tensor, together: int) -> Tensor:
        """A batch's loss as it is differentiated, where `together` batches make a step."""
        if together > 1:
            loss = loss / together
        return loss if self.scaler is None else self.scaler.scale(loss)

    def set_rate(self, step: int) -> None:
        """Give all optimizers the learning rate of a step."""
        lr = self.rate.at(step)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = lr

    def early(self) -> contextlib.AbstractContextManager[None]:
        """Within, a step's large parameters are stepped as soon as their gradients are complete,
        under `step_per_block`; not if replicas have to average the gradients first."""
        settings = self.settings
        if not settings.step_per_block or self.scaler is not None or settings.replicas > 1:
            return contextlib.nullcontext()
        return early_steps(self.rule, [o for o in self.optimizers.values() if o is not None])

    def step_block(self, i: int) -> None:
        """Step one block, under `step_per_block`, and free its gradients."""
        if (optimizer := self.optimizers[i]) is None:
            return
        if self.settings.clip_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.rule.parameters(), self.settings.clip_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def finish(self) -> None:
        """End a step, for all blocks."""
        if not self.settings.step_per_block:
            self.step_block(0)  # the one optimizer of all blocks here
        if self.scaler is not None:
            self.scaler.update()  # once all blocks have stepped: they share one scale
        if self.ema is not None:
            self.ema.update_parameters(self.rule)
