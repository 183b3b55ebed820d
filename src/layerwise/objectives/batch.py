"""What every block may see of a step, and where it leaves what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from layerwise.blocks.chain import Passes
from layerwise.inputs import Inputs, first_rows, leading

# The input seen otherwise, sample by sample: (B, ...) -> (B, ...).
View = Callable[[Tensor], Tensor]


def identity(loss: Tensor) -> Tensor:
    return loss


def nothing(block: int) -> None:
    """Do nothing when a block is done."""


@dataclass(eq=False)
class Report:
    """What a step leaves behind. Detached tensors on the device; reading one is the caller's.

    Attributes:
        logits: the network's output, (B, C), (B, T, C) or of maps (B, C, H, W).
        loss: the last block's loss, (); None where another process has it.
        local_losses: each block's loss, (); None for a block that has no objective of its own.
        local_logits: each block's class scores; None for a block that does not predict.
        y: the labels that belong to them, as in `Batch`.
    """

    logits: Tensor
    loss: Tensor | None
    local_losses: tuple[Tensor | None, ...]
    local_logits: tuple[Tensor | None, ...]
    y: Tensor


@dataclass(eq=False)
class Batch:
    """One step's input and labels, shared by all blocks; blocks leave their results here.

    Attributes:
        inputs: what the network is called with: a tensor, a tuple of arguments or a dict of named
            ones; None in a process that has later blocks and does without. More rows than labels
            are further augmented views of the same samples, view after view.
        y: labels: class numbers (B,), (B, T) or of maps (B, H, W), int64 whatever integer type they
            were given in; or the classes' probabilities; or what a criterion of the user's reads.
        scale: applied to each loss before it is differentiated (`GradScaler.scale`, or a division
            by the number of accumulated batches); what is reported stays unscaled.
        on_block: called with a block's number when the gradients of the block and of its auxiliary
            networks are complete.
        passes: the batch's way through the blocks, while the step lasts.
        rows: how many labels, B.
        x: the first tensor of the network's inputs, (B, ...), in the first view.
        unpooled: of the block under way, its output before the pooling that ends it, (B, ...); its
            output where none does.
        views: of the block under way, its output for each view that an objective asked for,
            (B, ...).
        augmented: of the block under way, where an objective compares augmented views, its output
            for each, (V, B, ...); the first is the block's output that every objective is given.
        drawn: `inputs`, with all augmented views, (V B, ...).
        synthetic: under a block's number, what its auxiliary network predicted of its target, with
            the graph of that prediction.
        targets: under a block's number, what the next block found that its auxiliary networks are
            to learn, such as the gradient of its output.
        along: what travels with an activation from block to block: tensors that the block before
            left for the block under way, which leaves its own for the next.
    """

    inputs: Inputs
    y: Tensor
    scale: Callable[[Tensor], Tensor] = identity
    on_block: Callable[[int], None] = nothing
    losses: dict[int, Tensor] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)
    unpooled: Tensor | None = None
    views: dict[View, Tensor] = field(default_factory=dict)
    augmented: Tensor | None = None
    rows: int = field(init=False)
    x: Tensor = field(init=False)
    drawn: Inputs = field(init=False)
    synthetic: dict[int, Tensor] = field(default_factory=dict)
    targets: dict[int, Tensor] = field(default_factory=dict)
    along: tuple[Tensor, ...] = ()
    passes: Passes | None = None
    _predicted: Tensor | None = None

    def __post_init__(self) -> None:
        self.drawn, self.rows = self.inputs, len(self.y)
        self.x = self.y if self.inputs is None else leading(self.inputs)
        if not (self.y.is_floating_point() or self.y.is_complex()):
            self.y = self.y.long()
        if len(self.x) > len(self.y):
            self.inputs = first_rows(self.inputs, len(self.y))
            self.x = leading(self.inputs)

    def run(self, k: int, h: Any, stream: int = 0) -> Tensor:
        """Block k's output, (B, ...), in the network's own forward.

        Args:
            k: number of the block.
            h: its input, (B, ...); of the first block the network's inputs.
            stream: number of the forward, where several go through side by side.
        """
        assert self.passes is not None, "a step has begun"
        return self.passes.run(k, h, stream)

    def again(self, k: int, h: Tensor, stream: int = 0) -> Tensor:
        """Block k's output, (B, ...), by itself: the network's forward goes on as if it had not
        run. `k`, `h` and `stream` as of `run`."""
        assert self.passes is not None, "a step has begun"
        return self.passes.again(k, h, stream)

    def predicted(self, logits: Tensor) -> None:
        """Called by an objective with the class scores it computed on its way to the loss."""
        if self._predicted is None:
            self._predicted = logits.detach()

    def finish(self, i: int, loss: Tensor) -> None:
        """Block `i` is done: keep its loss and what its objective predicted."""
        self.losses[i] = loss.detach()
        if self._predicted is not None:
            self.logits[i], self._predicted = self._predicted, None

    def report(self, logits: Tensor, blocks: int) -> Report:
        """The step's report, once all of `blocks` are done; `logits` is the network's output, of
        which the rows of further views are left out."""
        return Report(
            logits=logits.detach()[: len(self.y)],
            loss=self.losses.get(blocks - 1),
            local_losses=tuple(self.losses.get(i) for i in range(blocks)),
            local_logits=tuple(self.logits.get(i) for i in range(blocks)),
            y=self.y,
        )
