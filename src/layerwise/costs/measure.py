"""Measuring training steps side by side: time in turns, bytes and FLOPs in separate steps."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from layerwise.costs.flops import count_flops
from layerwise.costs.live_bytes import LiveBytes
from layerwise.costs.step_table import Measured
from layerwise.errors import InputError
from layerwise.inputs import Inputs, chosen_rows
from layerwise.objectives.batch import Batch, Scale, identity
from layerwise.rules import DelayedGradient
from layerwise.rules.base import Done, LocalRule, Rule, early_steps
from layerwise.runs.allocator import keep_freed_memory

When = Literal["end", "early"]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class Contender:
    """One of the ways to train that are compared; each has weights of its own.

    Attributes:
        name: in the table.
        rule: fills the gradients.
        when: the moment at which parameters are stepped and their gradients set to None: "end",
            once for all after the rule; "early", as soon as they are complete: each large parameter
            within the backward pass if the rule allows it (`early_steps`), the rest of a block by
            the rule's `on_block`.
        family: of ways to train, for pictures.
        micro: number of micro-batches over which gradients accumulate. Where parameters are stepped
            early, a local rule accumulates block by block (`LocalRule.accumulate`) if it can.
        turns: number of groups of blocks that train in turn; in a step one group has gradients and
            optimizer state. 1 trains all blocks in every step.
        around: makes a context in which each step runs.
    """

    name: str
    rule: Rule
    when: When = "end"
    family: str = ""
    micro: int = 1
    turns: int = 1
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def measure(
    contenders: Sequence[Contender],
    x: Inputs,
    y: Tensor,
    optimizer: MakeOptimizer,
    *,
    rounds: int,
    warmup: int = 0,
    keep_freed: bool = False,
) -> tuple[Measured, ...]:
    """Measure a training step of every contender.

    A step is the rule's whole backward, the optimizer's step and zero_grad(set_to_none=True). Each
    contender takes one step under `count_flops` and one under `LiveBytes`; they also warm up and
    create the optimizer's state. Then the contenders take turns for `rounds` timed rounds, so that
    other load on the machine affects all of them; only ratios within a round are reliable.

    Bytes are above a baseline of parameters (the heads' included), buffers and the batch. Optimizer
    state is counted during the whole step; see `LiveBytes` for the rest.

    Args:
        contenders: at least one.
        x: a batch, (B, ...), or the network's arguments in a tuple or dict, on the contenders'
            device.
        y: its labels.
        optimizer: makes an optimizer for a list of parameters.
        rounds: number of timed steps of each contender, at least 1.
        warmup: number of untimed steps of each contender before them.
        keep_freed: time as many steps again while glibc keeps freed memory (`keep_freed_memory`),
            if it can; it does so from then on.

    Returns:
        One measurement per contender.

    Raises:
        InputError: `rounds` is below 1; `warmup` is below 0.
    """
    for name, count, least in (("rounds", rounds, 1), ("warmup", warmup, 0)):
        if count < least:
            raise InputError(f"bench({name}={count}): give at least {least}")
    steps = [Step(contender, x, y, optimizer) for contender in contenders]
    costs = [_costs(step) for step in steps]
    times = _in_turns(steps, rounds, warmup)
    kept: Sequence[Sequence[Times]] = [[] for _ in steps]
    if keep_freed and y.device.type == "cpu" and keep_freed_memory():
        kept = _in_turns(steps, rounds, max(1, warmup))
    return tuple(
        dataclasses.replace(
            cost,
            times_s=tuple(t.wall_s for t in of_step),
            cpu_times_s=tuple(t.cpu_s for t in of_step),
            kept_times_s=tuple(t.wall_s for t in again),
        )
        for cost, of_step, again in zip(costs, times, kept, strict=True)
    )


class Step:
    """One training step of a contender; calling it takes the step."""

    def __init__(self, contender: Contender, x: Inputs, y: Tensor, optimizer: MakeOptimizer):
        self.contender, self.x, self.y = contender, x, y
        self.rule, self.make = contender.rule, optimizer
        rows = torch.arange(len(y), device=y.device).tensor_split(contender.micro)
        example = self.rule.blocks.example
        self.parts = (
            [(x, y)] if len(rows) == 1 else [(chosen_rows(x, i, example), y[i]) for i in rows]
        )
        blocks = range(len(self.rule.blocks))
        groups = {i: _trained(self.rule.parameters_of(i)) for i in blocks}
        self.turn, self.in_turn = 0, list(groups.values())
        if contender.when == "end":
            groups = {}
        # Parameters that are in no group are stepped once, after the rule.
        owned = {p for group in groups.values() for p in group}
        rest = [p for p in _trained(self.rule.parameters()) if p not in owned]
        if contender.turns > 1:
            groups, rest = {}, []
        self.optimizers = {i: optimizer(group) for i, group in groups.items() if group}
        self.rest = [optimizer(rest)] if rest else []

    def __call__(self) -> None:
        with self.contender.around():
            self._take()

    def _take(self) -> None:
        if self.contender.turns > 1:
            self._begin_turn()
        early = self.contender.when == "early" and self.contender.turns == 1
        several = early and len(self.parts) > 1
        if several and isinstance(self.rule, LocalRule) and self.rule.accumulates:
            self.rule.accumulate(self.parts, on_block=self.finish)
        else:
            for x, y in self.parts[:-1]:
                self.rule.backward(x, y, scale=self._share(x))
            x, y = self.parts[-1]
            if early:
                with early_steps(self.rule, self.optimizers.values()):
                    self.rule.backward(x, y, scale=self._share(x), on_block=self.finish)
            else:
                self.rule.backward(x, y, scale=self._share(x))
        for optimizer in self.rest:
            optimizer.step()
            optimizer.zero_grad()

    def _share(self, x: Tensor) -> Scale:
        """The scale of a micro-batch's loss."""
        if len(self.parts) == 1:
            return identity
        return lambda loss: loss * (len(x) / len(self.x))

    def _begin_turn(self) -> None:
        """Let the next group of blocks train, with fresh optimizer state."""
        blocks, turns = len(self.in_turn), min(self.contender.turns, len(self.in_turn))
        self.turn = (self.turn + 1) % turns
        active = range(self.turn * blocks // turns, (self.turn + 1) * blocks // turns)
        for i, group in enumerate(self.in_turn):
            for p in group:
                p.requires_grad_(i in active)
        self.rest = []  # the state before is freed first
        self.rest = [self.make([p for i in active for p in self.in_turn[i]])]

    def finish(self, i: int) -> None:
        if i in self.optimizers:
            self.optimizers[i].step()
            self.optimizers[i].zero_grad()

    def optimizer_state(self) -> list[Tensor]:
        return [
            value
            for optimizer in [*self.optimizers.values(), *self.rest]
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]


class Times(NamedTuple):
    """Seconds of a step."""

    wall_s: float
    cpu_s: float  # of all threads


def _in_turns(steps: Sequence[Step], rounds: int, warmup: int) -> list[list[Times]]:
    """The times of each step in every round, after untimed rounds."""
    times: list[list[Times]] = [[] for _ in steps]
    with _without_collector():
        for step in [*steps] * warmup:
            step()
        for _ in range(rounds):
            for step, so_far in zip(steps, times, strict=True):
                so_far.append(timed(step))
    return times


def timed(step: Step) -> Times:
    """The time of a step, which is taken; the mean over its turns."""
    _synchronize(step.y.device)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    turns = step.contender.turns
    for _ in range(turns):
        step()
    _synchronize(step.y.device)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Times(wall_s / turns, cpu_s / turns)


def _costs(step: Step) -> Measured:
    """Measure bytes and FLOPs; the times are filled in later."""
    device, rule = step.y.device, step.rule
    turns = range(step.contender.turns)
    flops = [count_flops(step, rule) for _ in turns]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for _ in turns:
            step()
        cuda_peak_bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        cuda_peak_bytes = None
    counted = [live_bytes(step) for _ in turns]
    most = max(counted, key=lambda live: live.peak().bytes)
    return Measured(
        name=step.contender.name,
        times_s=(),
        cpu_times_s=(),
        peak=most.peak(),
        activation_peak_bytes=most.peak("activations").bytes,
        at_rest_bytes=most.now,
        cuda_peak_bytes=cuda_peak_bytes,
        flops=sum(f.total for f in flops) // len(turns),
        head_flops=sum(f.heads for f in flops) // len(turns),
        parameters=sum(p.numel() for p in rule.parameters()),
        head_parameters=sum(
            p.numel()
            for i in range(len(rule.blocks))
            for module in rule.auxiliary(i)
            for p in module.parameters()
        ),
        family=step.contender.family,
    )


def live_bytes(step: Step, unseen: int = 0) -> LiveBytes:
    """The bytes of a step, which is taken; optimizer state is counted as in `measure`.

    Args:
        step: the step.
        unseen: moments in which a block of a `LocalRule` runs on a micro-batch of this size are no
            peak.
    """
    if step.contender.turns > 1:
        step.rest = []  # the state of the turn before
    with LiveBytes(step.rule.parameters()) as live, contextlib.ExitStack() as changed:
        if unseen:
            rule: Any = step.rule
            local_step = rule.local_step

            def unless_unseen(k: int, h: Tensor, batch: Batch, *carry: Tensor) -> Done:
                live.peaks = batch.rows != unseen
                done = local_step(k, h, batch, *carry)
                live.peaks = True
                return done

            rule.local_step = unless_unseen
            changed.callback(delattr, rule, "local_step")
        live.count("optimizer", step.optimizer_state())
        if isinstance(step.rule, DelayedGradient):
            live.count("gradients", step.rule.waiting())
        step()
        live.count("optimizer", step.optimizer_state())
    return live


def fused_optimizer(
    name: str, parameters: list[nn.Parameter], lr: float = 0.0, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """Fused SGD, or AdamW, as `layerwise train` has. On the meta device, where fused ones do not
    run, one that needs the same bytes."""
    fused = not parameters[0].is_meta
    made: torch.optim.Optimizer
    if name == "AdamW":
        made = torch.optim.AdamW(parameters, lr, fused=fused)
    else:
        made = torch.optim.SGD(parameters, lr, momentum, fused=fused)
    return made if fused else _state_only(made)


def _state_only(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, which computes nothing once its state exists. So it has no temporaries,
    like a fused one."""
    step = optimizer.step

    def begin() -> None:
        learning = (p for group in optimizer.param_groups for p in group["params"])
        if any(p.grad is not None and p not in optimizer.state for p in learning):
            step()

    optimizer.step = begin  # type: ignore[method-assign]
    return optimizer


def _trained(parameters) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad]


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed steps."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
