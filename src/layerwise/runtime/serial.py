"""One process that trains all blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from layerwise.objectives.batch import OnBlock, nothing
from layerwise.rules import DelayedGradient
from layerwise.rules.base import Report, Rule
from layerwise.runs.metrics import Metrics
from layerwise.runtime.runtime import StepOptions


def whole_step(rule: Rule, x: Tensor, y: Tensor, options: StepOptions, on_block: OnBlock) -> Report:
    """The rule's own loop over all blocks, with the options' scale; `before_block` is called before
    each block of a rule that trains one after the other, or that stages could run.

    Args:
        rule: the rule.
        x: the inputs.
        y: the labels.
        options: of the step.
        on_block: called in place of the options' own.
    """
    if isinstance(rule, DelayedGradient):  # its blocks all run before one of them is done
        rule.before_block = options.before_block
        try:
            return rule.backward(x, y, scale=options.scale, on_block=on_block)
        finally:
            rule.before_block = nothing

    def done(k: int) -> None:
        on_block(k)
        options.before_block(k + 1)

    options.before_block(0)
    return rule.backward(x, y, scale=options.scale, on_block=done)


class Serial:
    """The rule's own loop, in one process. A `Runtime`.

    Args:
        rule: the rule.
    """

    leader = True
    reads_input = True
    replica = 0
    counts = True

    def __init__(self, rule: Rule):
        self.rule, self.blocks = rule, range(len(rule.blocks))

    def backward(
        self,
        x: Tensor | None,
        y: Tensor,
        options: StepOptions = StepOptions(),
    ) -> Report:
        assert x is not None
        return whole_step(self.rule, x, y, options, options.on_block)

    def exits(
        self, rule: Rule, x: Tensor | None, y: Tensor, stops: bool = False
    ) -> Sequence[Tensor | None]:
        assert x is not None
        return rule.exits(x)

    def stops(self, asked: bool) -> bool:
        return asked

    def agree(self, stops: bool) -> bool:
        return stops

    def gather(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        return dict(state)

    def add_up(self, tally: Metrics) -> None:
        pass

    def close(self) -> None:
        pass
