"""One process that trains all blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from layerwise.rules.base import Report, Rule
from layerwise.runs.metrics import Metrics
from layerwise.runtime.runtime import StepOptions


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
        options.before_block(0)

        def done(k: int) -> None:
            options.on_block(k)
            options.before_block(k + 1)

        return self.rule.backward(x, y, scale=options.scale, on_block=done)

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
