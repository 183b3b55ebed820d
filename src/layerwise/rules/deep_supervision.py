"""Backpropagation with a loss at every block."""

from __future__ import annotations

from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.base.objectives import of_heads


class DeepSupervision(Rule):
    """Deep supervision: backpropagation through the whole network, with an additional loss at every
    block.

    Lee et al. 2015 (arXiv:1409.5185), eq. 3. L_k is the loss of block k's head, and L_K is the
    network's own loss. All weights learn from the gradient of

        loss = L_K + weight sum over k < K of L_k

    No gradient is stopped between blocks. The rule is therefore the right baseline for decoupled
    greedy learning with the same heads. With weight 0 the heads do not run and it is
    backpropagation, bit for bit; with one block it is backpropagation, too.

    With `detach`, the heads read detached activations, so their losses train only the heads. The
    network then gets the gradients of `Backprop`, bit for bit: these are early exits for a network
    that backpropagation trains. (It also gets the same weights if the optimizer does not mix
    parameters, as clipping by the norm of all gradients does.)

    Deviations: all heads have the same weight, which stays constant during training (the paper's
    falls to 0). The losses are cross entropies (the paper's are squared hinge losses, cut off at a
    threshold).

    Args:
        blocks: the network's blocks, made with an example input, from which the heads take their
            shapes.
        weight: the weight of each head's loss relative to the network's own loss; 0 or more.
        head: the recipe of the auxiliary network of every block except the last.
        criterion: the loss function of every block: takes class scores and labels, returns a
            scalar.
        detach: whether the heads' losses train only the heads.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; a negative
            weight.
    """

    needs = Needs.BACKWARD

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        weight: float = 1.0,
        head: Head = MLP(),
        criterion: Criterion = cross_entropy,
        detach: bool = False,
    ):
        super().__init__(blocks, of_heads("DeepSupervision", blocks, head, criterion), criterion)
        if not weight >= 0:
            raise InputError(
                f"DeepSupervision(weight={weight}): give at least 0; with 0 it is backpropagation"
            )
        self.weight, self.detach = weight, detach

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        found: dict[int, tuple[Tensor, Tensor | None]] = {}  # L_k and the class scores
        h = batch.inputs
        for k in range(last + 1):
            h = batch.run(k, h, keep=k > 0)  # head k-1 still needs h_{k-1}
            if k == last or self.weight > 0:
                read = h.detach() if self.detach and k < last else h
                found[k] = self.loss(k, Activity(read), batch)
        total, _ = found[last]  # L_K + weight sum over k < K of L_k
        for k in range(last if self.weight > 0 else 0):
            total = total + self.weight * found[k][0]
        differentiate(total, batch.scale)
        for k in range(last + 1):
            batch.done(k, *found.get(k, ()))
        return h
