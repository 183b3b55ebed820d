"""Sequential greedy training: each block is trained to the end before the next one starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives import Objective
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Done, LocalRule


class Sequential(LocalRule):
    """Sequential greedy training: blocks are trained one after the other, each by an objective of
    its own.

    Belilovsky, Eickenberg & Oyallon 2019 (arXiv:1812.11446), algorithm 1. In phase k, only block k
    learns:

        grad_k = d objective_k(f_k(sg[h_{k-1}])) / d (f_k, head_k)

    where sg[] stops the gradient. The blocks before the active one are frozen: they run in eval
    mode and without a graph, so BatchNorm's statistics do not move either. The blocks after it do
    not run. `phases` divides the epochs evenly among the blocks that have an objective; the first
    blocks get one epoch more if there is a remainder. The trainer restarts its learning-rate
    schedule in each phase. With one block it is backpropagation.

    An optimizer does not change a block whose gradients are None. Do not use
    `zero_grad(set_to_none=False)`, because momentum and weight decay would then move inactive
    blocks.

    In a report, only the active block has a loss. `logits` are its class scores, or its output if
    its objective does not predict. `forward` and `exits` are those of the whole network, including
    blocks that are not trained yet.

    Args:
        blocks: the network's blocks; made with an example input if an objective has a head, because
            heads take their shapes from it.
        objectives: one objective, of which every block except the last gets its own copy; or a list
            with one objective per block, None for a block that is not trained; or a list with one
            per block except the last. If the last block's objective is left out, the last block
            predicts the labels from the network's own output. The paper's k-hidden-layer problems
            are `Classify(heads.Linear())` for k = 1; for larger k the head has k - 1 hidden layers.
        criterion: the loss function of the last block if `objectives` leaves it out: takes class
            scores and labels, returns a scalar.

    Attributes:
        active: the number of the block that is being trained, from 0. It follows from the position
            in training and is not part of the state.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example and an
            objective has a head; `objectives` has the wrong length, contains something other than
            objectives, or leaves the last block with None; in `phases`, fewer epochs than blocks to
            train.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        objectives: Objective | Sequence[Objective | None],
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, objectives, criterion)
        self.order = [k for k in range(len(blocks)) if k in self.objectives]
        self.active = self.order[0]

    def phases(self, epochs: int) -> Sequence[int]:
        """The number of epochs that each block gets, out of `epochs`.

        Raises:
            InputError: fewer epochs than blocks to train.
        """
        each, over = divmod(epochs, len(self.order))
        if each == 0:
            raise InputError(
                f"Sequential: {epochs} epochs for {len(self.order)} blocks, one after the other; "
                f"give --epochs {len(self.order)} or more (the total for all blocks)"
            )
        return [each + (phase < over) for phase in range(len(self.order))]

    def begin(self, phase: int) -> None:
        """Make the block of this phase the active one."""
        self.active = self.order[phase]
        self.train(self.training)

    def train(self, mode: bool = True) -> Sequential:
        """Switch the mode, except that the blocks before the active one stay in eval mode."""
        super().train(mode)
        for i in range(self.active):
            self.blocks[i].eval()
        return self

    def local_step(self, k: int, h: Tensor, batch: Batch) -> Done:
        if k > self.active:  # it does not run
            return Done(h)
        if k < self.active:
            with torch.no_grad():
                return Done(self.run(k, h, batch)[0])
        return super().local_step(k, h, batch)

    def step(self, batch: Batch) -> Tensor:
        h = super().step(batch)
        return batch.scores.get(self.active, h)
