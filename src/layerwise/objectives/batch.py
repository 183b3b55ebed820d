"""One training step: its batch, its pass through the network and its results."""

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
    """Ignore that a block is done."""


@dataclass(eq=False)
class Batch:
    """The inputs and labels of one training step, which all blocks share, and the step's results.

    Attributes:
        inputs: what the network is called with: a tensor (B, ...), a tuple of arguments or a dict
            of named ones. If there are several augmented views, the first of them. None in a
            process that holds only later blocks and does not need them.
        augmented: as `inputs`, with all V augmented views, (V B, ...), view after view.
        labels: class numbers, (B,), (B, T) or (B, H, W), int64; or probabilities of the classes, in
            the shape of the class scores; or whatever the user's own criterion reads.
        scale: applied to each loss before it is differentiated (`GradScaler.scale`, or a division
            by the number of accumulated batches). Reported losses are not scaled.
        on_block: called with a block's number when the gradients of the block and of its auxiliary
            networks are complete.
        passes: the pass of the batch through the blocks; None outside a step.
        losses: the loss of each block that is done and has one, (), detached.
        scores: the class scores of each block that is done and predicts, detached.
        rows: the number of samples B.
        deferred: whether the network's class scores are not computed (`Rule.deferring_scores`).
    """

    inputs: Inputs
    labels: Tensor
    scale: Scale = identity
    on_block: OnBlock = nothing
    passes: Passes | None = None
    losses: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    deferred: bool = False

    def __post_init__(self) -> None:
        self.augmented = self.inputs
        refuse_no_labels(self.labels)
        self.rows = self.labels.shape[0]
        if not (self.labels.is_floating_point() or self.labels.is_complex()):
            self.labels = self.labels.long()
        if self.inputs is not None and len(leading(self.inputs)) > self.rows:
            self.inputs = first_rows(self.inputs, self.rows)

    @property
    def x(self) -> Tensor:
        """The first tensor of the network's inputs, (B, ...)."""
        return leading(self.inputs)

    def run(self, k: int, h: Any, stream: int = 0, keep: bool = False) -> Tensor:
        """Run block k as a part of the network's own forward.

        Args:
            k: number of the block.
            h: its input, (B, ...); for the first block the network's inputs.
            stream: number of the forward, if several run at the same time.
            keep: whether `h` is read again later, or is a leaf whose gradient is needed. A block
                whose first layer works in place then gets a copy.

        Returns:
            The block's output, (B, ...).
        """
        assert self.passes is not None, "a step has begun"
        return self.passes.run(k, kept(self.passes.blocks[k], h) if keep else h, stream)

    def again(self, k: int, h: Any, stream: int = 0, keep: bool = False) -> Tensor:
        """Run block k once more, on any input. The network's forward, which `run` advances, is not
        affected. Arguments and result are those of `run`."""
        assert self.passes is not None, "a step has begun"
        return self.passes.again(k, kept(self.passes.blocks[k], h) if keep else h, stream)

    def done(self, k: int, loss: Tensor | None = None, scores: Tensor | None = None) -> None:
        """Report that the gradients of block k are complete; this calls `on_block`, which may step
        and clear them.

        Args:
            k: number of the block.
            loss: its loss, (), or None; recorded detached.
            scores: its class scores, (B, C), or None; recorded detached.
        """
        if loss is not None:
            self.losses[k] = loss.detach() if loss.requires_grad else loss
        if scores is not None:
            self.scores[k] = scores.detach() if scores.requires_grad else scores
        self.finished.append(k)
        self.on_block(k)

    def scaled_one(self, like: Tensor) -> Tensor:
        """The loss scale as a number, (), in the type and on the device of `like`. A rule that
        needs a gradient without the scale divides by it."""
        return self.scale(torch.ones((), device=like.device, dtype=like.dtype))
