"""Backpropagation, the reference of every comparison; with or without activation checkpointing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layerwise.batch import Batch, Report, identity
from layerwise.blocks import Blocks
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rule import Needs, OnBlock, Rule, Scale, differentiate


class Backprop(Rule):
    """End-to-end backpropagation of the network's own loss.

    Args:
        blocks: the network.
        checkpoint: keep only the blocks' inputs and run each block again on the way back
            (Chen et al. 2016, arXiv:1604.06174), which trades a second forward for memory. Random
            states are kept and running statistics move once, so the gradient is the same.
        criterion: of class scores and labels, a scalar.
    """

    needs = Needs.BACKWARD

    def __init__(
        self, blocks: Blocks, checkpoint: bool = False, criterion: Criterion = cross_entropy
    ):
        super().__init__(blocks)
        self.checkpoint = checkpoint
        self.objectives[str(len(blocks) - 1)] = Classify(criterion=criterion)

    def backward(
        self, x: Tensor, y: Tensor, *, scale: Scale = identity, on_block: OnBlock | None = None
    ) -> Report:
        batch = Batch(x, y, scale)
        last = len(self.blocks) - 1
        h = x
        for block in self.blocks:
            h = _checkpointed(block, h) if self.checkpoint else block(h)
        loss = self.objectives[str(last)](h, batch)
        differentiate(loss, scale)
        batch.finish(last, loss)
        if on_block is not None:
            for i in reversed(range(len(self.blocks))):
                on_block(i)
        return batch.report(h, len(self.blocks))


def _checkpointed(block: nn.Module, h: Tensor) -> Tensor:
    return checkpoint(
        block,
        h,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _running_statistics_stay(block)),
    )


@contextlib.contextmanager
def _running_statistics_stay(block: nn.Module) -> Iterator[None]:
    """Let BatchNorm run again without moving what it has moved already."""
    norms = [m for m in block.modules() if getattr(m, "track_running_stats", False) and m.training]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, batches
