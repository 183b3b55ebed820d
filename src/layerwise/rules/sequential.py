"""One block after the other: each is trained to the end before the next begins."""

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
    """Sequential greedy training: in phase k block k minimises its objective, alone.

    Belilovsky, Eickenberg & Oyallon 2019 (arXiv:1812.11446), algorithm 1. The blocks before the
    active one are frozen: they run in eval mode and without a graph, so that BatchNorm's
    statistics stay, too. Those after it do not run. The `phases` divide the epochs evenly among the
    blocks that have an objective, the first ones taking what is left over, and the trainer starts
    its learning-rate schedule anew in each. With one block it is backpropagation.

    Optimizers leave a block alone whose gradients are None; `zero_grad(set_to_none=False)` would
    have momentum and weight decay move it.

    In a report all but the active block has no loss, and `logits` are the active block's class
    scores, or its output where its objective does not predict. `forward` and `exits` are those of
    the whole network, trained or not.

    Args:
        blocks: the network, made with an example where an objective has a head.
        objectives: one, of which every block but the last gets its own copy; or one per block, None
            for a block that stays as it is; or one per block but the last. Where the last is left
            out it predicts the labels from the network's own output. The paper's k-hidden-layer
            problems are `Classify(heads.Linear())` for k = 1, and k - 1 hidden layers in the head.
        criterion: the last block's loss where its objective is left out.

    Attributes:
        active: number of the block that is being trained; which one follows from where training
            stands and is no part of the state.
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
        """How many of `epochs` each block gets.

        Raises:
            InputError: fewer epochs than blocks to train.
        """
        each, over = divmod(epochs, len(self.order))
        if each == 0:
            raise InputError(
                f"Sequential: {epochs} epochs for {len(self.order)} blocks, one after the other; "
                f"give --epochs {len(self.order)} or more, so many for all blocks together"
            )
        return [each + (phase < over) for phase in range(len(self.order))]

    def begin(self, phase: int) -> None:
        """Train the block of this phase from now on."""
        self.active = self.order[phase]
        self.train(self.training)

    def train(self, mode: bool = True) -> Sequential:
        """As usual, but the blocks before the active one stay in eval mode."""
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
