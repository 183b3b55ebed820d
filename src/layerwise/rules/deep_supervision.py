"""Backpropagation with a loss at every block."""

from __future__ import annotations

from torch import Tensor

from layerwise.blocks import Blocks
from layerwise.blocks.inplace import starts_in_place
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.objectives import Classify
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate


class DeepSupervision(Rule):
    """Deeply supervised network: the heads of a local rule, and nothing detached.

    Lee et al. 2015 (arXiv:1409.5185), eq. 3. With L_k the loss of block k's head, end to end:

        loss = L_K + weight sum over k < K of L_k

    What decoupled greedy learning with the same heads is to be held against. With weight 0 the
    heads are left out and it is backpropagation, bit for bit; with one block too.

    Deviations: one weight for all blocks, constant in training (the paper's falls to 0); the
    losses are cross entropies (the paper's are squared hinge losses, cut off at a threshold).

    Args:
        blocks: the network, made with an example.
        weight: of each loss but the network's own.
        head: the auxiliary network of every block but the last.
        criterion: of class scores and labels, a scalar; every block's.

    Raises:
        InputError: a negative weight.
    """

    needs = Needs.BACKWARD

    def __init__(
        self,
        blocks: Blocks,
        weight: float = 1.0,
        head: Head = MLP(),  # noqa: B008 (frozen)
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks)
        if not weight >= 0:
            raise InputError(
                f"DeepSupervision(weight={weight}): give at least 0; with 0 it is backpropagation"
            )
        self.weight = weight
        last = len(blocks) - 1
        for k in range(len(blocks)):
            self._attach(k, Classify(head if k < last else None, criterion))

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        heads: list[Tensor] = []
        h = batch.inputs
        for k, block in enumerate(self.blocks):
            # A head still needs what an in-place block would write over.
            h = batch.run(k, h.clone() if k and starts_in_place(block) else h)
            if k == last or self.weight > 0:
                objective = self._objective(k)
                assert objective is not None
                with self._kept(k, h):
                    loss = objective(h, batch)
                batch.finish(k, loss)
                heads.append(loss)
        total = heads.pop()
        for loss in heads:
            total = total + self.weight * loss
        differentiate(total, batch.scale)
        for k in range(len(self.blocks)):
            batch.on_block(k)
        return h
