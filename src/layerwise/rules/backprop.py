"""Backpropagation, the reference of every comparison; with or without activation checkpointing."""

from __future__ import annotations

import contextlib

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layerwise.batch import Report, identity
from layerwise.blocks import Blocks
from layerwise.blocks.again import buffers_as, buffers_of
from layerwise.errors import InputError
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rule import Needs, OnBlock, Rule, Scale, differentiate


class Backprop(Rule):
    """End-to-end backpropagation of the network's own loss.

    Args:
        blocks: the network.
        checkpoint: keep only the blocks' inputs and run each block again on the way back
            (Chen et al. 2016, arXiv:1604.06174), which trades a second forward for memory. Random
            states are kept and buffers (running statistics) move once, so the gradient is the
            same.
        criterion: of class scores and labels, a scalar.

    Raises:
        InputError: a block changes its input in place, under `checkpoint`.
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
        batch = self._batch(x, y, scale)
        last = len(self.blocks) - 1
        h = x
        for name, block in zip(self.blocks.names, self.blocks, strict=True):
            h = _checkpointed(name, block, h) if self.checkpoint else block(h)
        loss = self.objectives[str(last)](h, batch)
        differentiate(loss, scale)
        batch.finish(last, loss)
        if on_block is not None:
            for i in reversed(range(len(self.blocks))):
                on_block(i)
        return batch.report(h, len(self.blocks))


def _checkpointed(name: str, block: nn.Module, h: Tensor) -> Tensor:
    before = buffers_of(block)
    version = h._version
    out = checkpoint(
        block,
        h,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), buffers_as(before)),
    )
    if h._version != version:
        raise InputError(
            f"Backprop(checkpoint=True): block {name!r} changes its input in place, so it cannot "
            "run again on it; make its first operation inplace=False, or cut elsewhere"
        )
    return out
