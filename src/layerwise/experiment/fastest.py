"""The precision and the memory format in which a rule trains fastest on this machine."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerwise.blocks.unchanged import unchanged
from layerwise.costs.example_labels import example_labels
from layerwise.costs.flops import count_flops
from layerwise.errors import InputError
from layerwise.rules import DelayedGradient
from layerwise.rules.base import Rule, alone
from layerwise.trainer.settings import Precision

WORTH_FLOPS = 10**9  # a step with fewer is over before the choice matters
ROWS, ROUND_S, ROUNDS = 32, 0.1, 3
GAIN = 0.95  # the share of the time that another choice may take at most


@dataclass(frozen=True)
class Fastest:
    """What was found.

    Attributes:
        precision: 32, or bf16 where it is faster.
        channels_last: whether channels-last is faster.
        line: what was measured, for the user; None if nothing was.
    """

    precision: Precision
    channels_last: bool
    line: str | None


def fastest(
    rule: Rule,
    device: torch.device,
    batch_size: int,
    views: int,
    precision: Precision,
    channels_last: bool | str,
    labels: Tensor | None = None,
) -> Fastest:
    """Find which precision and memory format train a rule fastest, by steps on random inputs that
    take about a second in all.

    Small networks, with less than 10^9 FLOPs per step, are trained in single precision and in
    PyTorch's own format, without being measured. A choice has to save 5 % of the time.

    Args:
        rule: on the CPU; it is left unchanged.
        device: that of the training.
        batch_size: samples per batch in this process.
        views: augmented views of each sample.
        precision: "auto", or the one that is wanted.
        channels_last: "auto", or the one that is wanted.
        labels: a batch of labels, if the rule has a criterion of your own.

    Raises:
        InputError: float16, whose loss scale changes, under delayed gradients.
    """
    if precision == "16" and isinstance(rule, DelayedGradient):
        raise InputError(
            "--precision 16: under DelayedGradient gradients arrive when the loss scale may be "
            "another; give bf16 or 32"
        )
    wanted = Fastest(
        "32" if precision == "auto" else precision,
        channels_last is True,
        None,
    )
    formats = channels_last == "auto" and any(isinstance(m, nn.Conv2d) for m in rule.modules())
    types = precision == "auto" and device.type in ("cpu", "cuda")
    if not (formats or types) or not _is_worth_it(rule, batch_size * views):
        return wanted
    with torch.random.fork_rng(), alone(rule):
        times = _Times(rule, device, min(batch_size, ROWS), views, labels)
        found, said = wanted, []
        if formats:
            share = times.share(wanted, Fastest(wanted.precision, True, None))
            found = Fastest(found.precision, share < GAIN, None)
            said.append(f"channels_last takes {share:.2f} of the time")
        if types:
            share = times.share(found, Fastest("bf16", found.channels_last, None))
            found = Fastest("bf16" if share < GAIN else "32", found.channels_last, None)
            said.append(f"bf16 {share:.2f} of the time in single precision")
    chosen = f"--precision {found.precision} --channels_last {str(found.channels_last).lower()}"
    return Fastest(found.precision, found.channels_last, f"{chosen}: {', '.join(said)}")


def _is_worth_it(rule: Rule, rows: int) -> bool:
    """Whether a step has enough FLOPs to be measured; a step has three times those of a forward."""
    weight = next(rule.parameters(), torch.zeros(()))
    with torch.no_grad(), unchanged(rule):
        rule.eval()
        flops = count_flops(lambda: rule(rule.blocks.zeros(1, weight))).total
    return 3 * flops * rows >= WORTH_FLOPS


class _Times:
    """Times of steps of copies of a rule, in several precisions and formats."""

    def __init__(
        self,
        rule: Rule,
        device: torch.device,
        rows: int,
        views: int,
        labels: Tensor | None = None,
    ):
        self.rule, self.device, self.views, self.labels = rule, device, views, labels
        self.rows = rows
        once = self._step(Fastest("32", False, None))
        once()
        seconds = self._seconds(once)
        self.rows = max(2, min(rows, int(rows * ROUND_S / seconds)))

    def share(self, one: Fastest, other: Fastest) -> float:
        """The time of a step in `other`, divided by that in `one`, in turns."""
        steps = [self._step(one), self._step(other)]
        try:
            for step in steps:
                step()
        except (RuntimeError, NotImplementedError):  # not for every operation of every network
            return math.inf
        times = [[self._seconds(step) for step in steps] for _ in range(ROUNDS)]
        first, second = (min(of_step) for of_step in zip(*times, strict=True))
        return second / first

    def _step(self, way: Fastest) -> Callable[[], None]:
        rule = copy.deepcopy(self.rule).to(self.device).train()
        rule.begin(0)
        weight = next(rule.parameters(), torch.zeros((), device=self.device))
        x = rule.blocks.zeros(self.rows * self.views, weight)
        if isinstance(x, Tensor) and x.is_floating_point():
            x = torch.randn_like(x)
        if way.channels_last:
            rule.to(memory_format=torch.channels_last)
            assert isinstance(x, Tensor)
            x = x.contiguous(memory_format=torch.channels_last)
        y = example_labels(rule, self.rows, self.labels, self.device)
        half = way.precision == "bf16"

        def step() -> None:
            autocast = torch.autocast(self.device.type, torch.bfloat16)
            with autocast if half else contextlib.nullcontext(), alone(rule):
                rule.backward(x, y)
            rule.zero_grad()

        return step

    def _seconds(self, step: Callable[[], None]) -> float:
        self._wait()
        start = time.perf_counter()
        step()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
