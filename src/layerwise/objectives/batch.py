"""What every block may see of a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from layerwise.blocks.chain import Passes
from layerwise.blocks.inplace import kept
from layerwise.inputs import Inputs, first_rows, leading
from layerwise.labels import refuse_no_labels

Scale = Callable[[Tensor], Tensor]
OnBlock = Callable[[int], None]


def identity(loss: Tensor) -> Tensor:
    """The loss, unscaled."""
    return loss


def nothing(block: int) -> None:
    """Do nothing when a block is done."""


@dataclass(eq=False)
class Batch:
    """The inputs and the labels of one training step, which all blocks share.

    Attributes:
        inputs: what the network is called with: a tensor, a tuple of arguments or a dict of named
            ones. Of augmented views the first; `augmented` has them all. None in a process that
            has only later blocks and does without.
        labels: class numbers, (B,), (B, T) or of maps (B, H, W), as int64; or the probabilities of
            the classes; or what a criterion of the user's reads.
        scale: applied to each loss before it is differentiated (`GradScaler.scale`, or a division
            by the number of accumulated batches). Reported losses are not scaled.
        on_block: called with a block's number when the gradients of the block and of its auxiliary
            networks are complete.
        passes: the batch's pass through the blocks, while the step lasts.
        losses: the loss of each block that is done and has one, (), detached.
        scores: the class scores of each block that is done and predicts, detached.
    """

    inputs: Inputs
    labels: Tensor
    scale: Scale = identity
    on_block: OnBlock = nothing
    passes: Passes | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.augmented = self.inputs
        refuse_no_labels(self.labels)
        if not (self.labels.is_floating_point() or self.labels.is_complex()):
            self.labels = self.labels.long()
        if self.inputs is not None and len(leading(self.inputs)) > self.rows:
            self.inputs = first_rows(self.inputs, self.rows)

    @property
    def rows(self) -> int:
        """B, the number of samples."""
        return len(self.labels)

    @property
    def x(self) -> Tensor:
        """The first tensor of the network's inputs, (B, ...)."""
        return leading(self.inputs)

    def run(self, k: int, h: Any, stream: int = 0, keep: bool = False) -> Tensor:
        """Run block k in the network's own forward; gives its output, (B, ...).

        Args:
            k: number of the block.
            h: its input, (B, ...); of the first block the network's inputs.
            stream: number of the forward, where several run side by side.
            keep: whether `h` is read again later, or is a leaf whose gradient is wanted; a block
                whose first layer works in place then gets a copy.
        """
        assert self.passes is not None, "a step has begun"
        return self.passes.run(k, kept(self.passes.blocks[k], h) if keep else h, stream)

    def again(self, k: int, h: Any, stream: int = 0, keep: bool = False) -> Tensor:
        """Run block k by itself, as `run` does; the network's forward continues as if it had not
        run."""
        assert self.passes is not None, "a step has begun"
        return self.passes.again(k, kept(self.passes.blocks[k], h) if keep else h, stream)

    def done(self, k: int, loss: Tensor | None = None, scores: Tensor | None = None) -> None:
        """The gradients of block k are complete: keep its loss, (), and its class scores, and tell
        whoever waits (`on_block`)."""
        if loss is not None:
            self.losses[k] = loss.detach()
        if scores is not None:
            self.scores[k] = scores.detach()
        self.on_block(k)

    def scaled_one(self, like: Tensor) -> Tensor:
        """The loss scale as a number, (): what `scale` makes of 1, in the type and on the device of
        `like`. A rule divides by it where it needs a gradient that is not scaled."""
        return self.scale(torch.ones((), device=like.device, dtype=like.dtype))
