"""Backpropagation with a loss at every block."""

from __future__ import annotations

from torch import Tensor

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.objectives import Activity, Classify
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
        head: Head = MLP(),
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, Classify(head, criterion), criterion)
        if not weight >= 0:
            raise InputError(
                f"DeepSupervision(weight={weight}): give at least 0; with 0 it is backpropagation"
            )
        self.weight = weight

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        found: dict[int, tuple[Tensor, Tensor | None]] = {}  # L_k and the class scores
        h = batch.inputs
        for k in range(last + 1):
            h = batch.run(k, h, keep=k > 0)  # the head before still needs its input
            if k == last or self.weight > 0:
                found[k] = self.loss(k, Activity(h), batch)
        total, _ = found[last]
        for k in range(last if self.weight > 0 else 0):
            total = total + self.weight * found[k][0]
        differentiate(total, batch.scale)
        for k in range(last + 1):
            batch.done(k, *found.get(k, ()))
        return h
