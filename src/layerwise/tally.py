"""Loss and accuracy of every block over many batches, summed on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Tally:
    """Sums of losses and of right predictions per block; nothing reaches the host until asked.

    Args:
        blocks: how many blocks.
        device: where the sums live.
    """

    def __init__(self, blocks: int, device: torch.device | str = "cpu"):
        wide = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.loss_sums = torch.zeros(blocks, dtype=wide, device=device)
        self.right = torch.zeros(blocks, dtype=wide, device=device)
        self.has_loss = [False] * blocks
        self.has_logits = [False] * blocks
        self.samples = 0
        self.labels = 0

    @torch.no_grad()
    def add(
        self, losses: Sequence[Tensor | None], logits: Sequence[Tensor | None], y: Tensor
    ) -> None:
        """Count one batch.

        Args:
            losses: each block's mean loss, (), or None.
            logits: each block's class scores, (B, C) or (B, T, C), or None.
            y: labels, (B,) or (B, T).
        """
        self.samples += len(y)
        self.labels += y.numel()
        with_loss = [i for i, loss in enumerate(losses) if loss is not None]
        if with_loss:
            stacked = torch.stack([losses[i] for i in with_loss])  # type: ignore[misc]
            self.loss_sums[with_loss] += stacked.to(self.loss_sums.dtype) * y.numel()
        with_logits = [i for i, scores in enumerate(logits) if scores is not None]
        if with_logits:
            predicted = torch.stack([logits[i].argmax(-1) for i in with_logits])  # type: ignore[union-attr]
            self.right[with_logits] += (predicted == y).flatten(1).sum(1).to(self.right.dtype)
        for i in with_loss:
            self.has_loss[i] = True
        for i in with_logits:
            self.has_logits[i] = True

    def losses(self) -> list[float | None]:
        """Mean nats per label of each block. Waits for the device."""
        means = (self.loss_sums / max(1, self.labels)).tolist()
        return [m if has else None for m, has in zip(means, self.has_loss, strict=True)]

    def accuracies(self) -> list[float | None]:
        """Share of right predictions of each block, 0 to 1. Waits for the device."""
        shares = (self.right / max(1, self.labels)).tolist()
        return [s if has else None for s, has in zip(shares, self.has_logits, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            if isinstance(value, Tensor):
                getattr(self, key).copy_(value)
            else:
                setattr(self, key, value)
