"""Finds losses and weights that are no longer finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from layerwise.rules.base import Rule


class FiniteCheck:
    """Finds the first block whose loss or weights are infinite or not a number.

    Losses are noted on the device in every step; the host reads the notes only where it may wait
    for the device.

    Args:
        rule: the rule, on its device.
        device: that device.
        blocks: numbers of the blocks to check.
    """

    def __init__(self, rule: Rule, device: torch.device, blocks: Sequence[int]):
        self.rule, self.blocks = rule, blocks
        self.first_bad = torch.full((len(rule.blocks),), -1, device=device)

    def note(self, losses: Tensor, step: int) -> None:
        """Note the losses (blocks,) of a step."""
        bad = losses.isfinite().logical_not_().logical_and_(self.first_bad < 0)
        self.first_bad.masked_fill_(bad, step)

    def losses(self) -> tuple[str, int] | None:
        """The first loss that was not finite ("the loss of block 1 (fc2)") and its step; None if
        all were finite. Waits for the device."""
        first_bad = self.first_bad.tolist()
        if max(first_bad) < 0:
            return None
        step = min(s for s in first_bad if s >= 0)
        return self._of_block("the loss", first_bad.index(step)), step

    def weights(self, step: int) -> tuple[str, int] | None:
        """The first block with a weight or buffer that is not finite, and the step that made it so,
        the last one before `step`. Waits for the device."""
        finite = torch.stack([self._finite(i) for i in self.blocks]).tolist()
        if all(finite):
            return None
        return self._of_block("a weight", self.blocks[finite.index(False)]), step - 1

    def _finite(self, i: int) -> Tensor:
        """Whether all parameters and buffers of block `i` are finite, () bool on the device."""
        held = [*self.rule.parameters_of(i), *self.rule.blocks[i].buffers()]
        flags = [tensor.isfinite().all() for tensor in held]
        return torch.stack([torch.ones_like(self.first_bad[i], dtype=torch.bool), *flags]).all()

    def _of_block(self, what: str, block: int) -> str:
        return f"{what} of block {block} ({self.rule.blocks.names[block]})"
