"""The network that ends at an exit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layerwise.arguments import check, shortened
from layerwise.blocks.chain import dry_run
from layerwise.errors import InputError
from layerwise.inputs import call
from layerwise.rules.base import Rule


class Exit(nn.Module):
    """The network that ends at an exit: the blocks up to it, and that block's class scores.

    Its modules are the rule's own; nothing after the exit runs.

    Args:
        rule: the rule, trained or not; its blocks were made with an example.
        i: number of the exit's block, such as `cheapest` gives.

    Raises:
        InputError: there is no such block; the block does not predict; the rule does not predict by
            running its blocks in order.
    """

    def __init__(self, rule: Rule, i: int):
        super().__init__()
        if not isinstance(rule, Rule):
            raise InputError(f"Exit(rule={shortened(rule)}): give a rule, lw.rules.DGL(...)")
        check("Exit", {"i": i}, {"i": int})
        name, last = type(rule).__name__, len(rule.blocks) - 1
        if not 0 <= i <= last:
            raise InputError(f"Exit({name}, {i}): give the number of a block, 0 to {last}")
        if type(rule).exit is not Rule.exit:
            raise InputError(
                f"Exit({name}, {i}): {name} does not predict by running its blocks in order; "
                "use rule.exits(x)"
            )
        self.blocks, self.i = rule.blocks.up_to(i), i
        self.head = rule.objectives.get(i) if i < last else None
        if i < last and not self._predicts(rule):
            raise InputError(
                f"Exit({name}, {i}): block {rule.blocks.names[i]!r} gives no class scores; choose "
                "another block, or an objective that predicts: Classify"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Class scores, from the inputs that the network takes."""
        h = self.blocks(*args, **kwargs)
        if self.head is None:
            return h
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        return self.head.predict(h, inputs)  # type: ignore[operator]

    def _predicts(self, rule: Rule) -> bool:
        if self.head is None:
            return False
        weight = next(rule.parameters(), torch.zeros(()))
        with dry_run(self):
            return call(self, rule.blocks.zeros(1, weight)) is not None
