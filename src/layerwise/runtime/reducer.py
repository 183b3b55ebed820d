"""The mean of gradients over the processes that hold the same blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from layerwise.runtime.link import losing


class Reducer:
    """Averages a block's gradients over its replicas while the next block runs.

    Args:
        group: the processes that hold the same blocks, each on its own part of every batch.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self._last: Callable[[], None] | None = None

    def add(self, parameters: Sequence[nn.Parameter], then: Callable[[], None]) -> None:
        """Start to average a block's gradients, as one message, and finish those of the block that
        was added before it.

        Args:
            parameters: the block's; those without a gradient are left out.
            then: called when these gradients are averaged.

        Raises:
            LostStage: a replica is gone.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        together = torch.cat([g.flatten() for g in gradients]) if gradients else None
        work: dist.Work | None = None
        if together is not None:
            with losing("a replica"):
                work = dist.all_reduce(together, group=self.group, async_op=True)

        def finish() -> None:
            if work is not None and together is not None:
                with losing("a replica"):
                    work.wait()
                self._put(together, gradients)
            then()

        self.finish()
        self._last = finish

    def finish(self) -> None:
        """Wait for the average of the block that was added last."""
        last, self._last = self._last, None
        if last is not None:
            last()

    def _put(self, total: Tensor, gradients: Sequence[Tensor]) -> None:
        total /= dist.get_world_size(self.group)
        means = total.split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
