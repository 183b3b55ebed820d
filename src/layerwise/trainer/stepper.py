"""From gradients to weights: optimizers, learning rate, loss scale, clipping, averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from layerwise.rules.base import Rule, early_steps
from layerwise.rules.delayed_gradient import correct_delay
from layerwise.runs.released import is_released, release
from layerwise.trainer.learning_rate import LearningRate
from layerwise.trainer.optim import Optimizer, Schedule
from layerwise.trainer.settings import Settings


class Average(AveragedModel):
    """The moving average of a rule's parameters and buffers.

    The update of `AveragedModel` copies its count to the device in every step, and the host waits
    for that.

    Args:
        rule: on its device.
        decay: of the average.
    """

    def __init__(self, rule: Rule, decay: float):
        super().__init__(rule, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        released = {name for name, p in rule.named_parameters() if is_released(p)}
        release(p for name, p in self.module.named_parameters() if name in released)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        first = bool(self.n_averaged == 0)  # it stays on the CPU
        kinds: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for own, now in zip(_held(self.module), _held(model), strict=True):
            if first:
                own.copy_(now)
            else:
                owned, given = kinds.setdefault((own.device, own.dtype), ([], []))
                owned.append(own)
                given.append(now.to(own.device))
        assert self.multi_avg_fn is not None
        for owned, given in kinds.values():
            self.multi_avg_fn(owned, given, self.n_averaged)
        self.n_averaged += 1


def _factors(rule: Rule, settings: Settings) -> dict[nn.Parameter, float]:
    """The factor of the learning rate of each parameter that does not learn at the rate itself."""
    blocks, last = range(len(rule.blocks)), len(rule.blocks) - 1
    factors = {
        p: settings.lr_auxiliary for k in blocks for m in rule.auxiliary(k) for p in m.parameters()
    }
    factors |= {
        p: settings.lr_last if k == last else 1.0
        for k in blocks
        for p in rule.blocks[k].parameters()
    }
    return {p: factor for p, factor in factors.items() if factor != 1}


def _split_by_factor(
    optimizer: torch.optim.Optimizer, factors: Mapping[nn.Parameter, float]
) -> None:
    """Divide the groups of an optimizer, so that the parameters of each have one factor."""
    groups: list[dict] = []
    for group in optimizer.param_groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for p in group["params"]:
            parts.setdefault(factors.get(p, 1.0), []).append(p)
        own = group["lr"] / optimizer.defaults["lr"] if optimizer.defaults["lr"] else 1.0
        groups += [{**group, "params": part, "factor": own * f} for f, part in parts.items()]
    optimizer.param_groups[:] = groups


def _held(module: nn.Module) -> Iterable[Tensor]:
    """The tensors whose values this process has."""
    held = (*module.parameters(), *module.buffers())
    return (tensor.detach() for tensor in held if not is_released(tensor))


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
        for made in self.optimizers.values():
            if made is not None:
                _split_by_factor(made, _factors(rule, settings))
                if getattr(rule, "error_feedback", False):
                    correct_delay(made)
        self.steps_per_epoch = math.ceil(batches / settings.accumulate)
        self.rate = LearningRate(
            optimizer.lr,
            schedule,
            rule.phases(settings.epochs),
            self.steps_per_epoch,
        )
        self.ema = None if settings.ema is None else Average(rule, settings.ema)

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
                group["lr"] = lr * group.get("factor", 1.0)

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
