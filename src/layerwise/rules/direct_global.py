"""Decoupled greedy learning in which every head also gets the gradient at the network's output."""

from __future__ import annotations

from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.inputs import detached
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule, differentiate
from layerwise.rules.base.objectives import of_heads


class DirectGlobal(Rule):
    """Direct global gradient: decoupled greedy learning in which the gradient at every head's class
    scores is mixed with the gradient at the network's output.

    With z_k the class scores of block k's head on f_k(sg[h_{k-1}]), w the weight, and L the loss;
    sg[] stops the gradient:

        d_k    = (1 - w) dL(z_k)/dz_k + w dL(z_K)/dz_K
        grad_k = d_k dz_k / d (f_k, head_k)

    Everything before the scores is linear in d_k, so mixing at the scores equals mixing the two
    gradients of the block's weights. With w = 0 it is `DGL`, bit for bit; with one block it is
    backpropagation. No signal passes from block to block. All blocks run before the first one can
    learn, so every activation is kept, as in backpropagation.

    Args:
        blocks: the network's blocks, made with an example input, from which the heads take their
            shapes.
        last_gradient_weight: the weight w of the gradient at the network's output, in [0, 1].
        head: the recipe of the auxiliary network of every block except the last.
        criterion: the loss function of every block: takes class scores and labels, returns a
            scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; a weight
            outside [0, 1].
    """

    needs = Needs.FORWARD | Needs.ERROR

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        last_gradient_weight: float = 0.5,
        head: Head = MLP(),
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, of_heads("DirectGlobal", blocks, head, criterion), criterion)
        if not 0 <= last_gradient_weight <= 1:
            raise InputError(
                f"DirectGlobal(last_gradient_weight={last_gradient_weight}): give a weight in "
                "[0, 1]; with 0 it is DGL"
            )
        self.last_gradient_weight, self.criterion = last_gradient_weight, criterion

    def step(self, batch: Batch) -> Tensor:
        w, last = self.last_gradient_weight, len(self.blocks) - 1
        graphs: list[tuple[Tensor, Tensor]] = []  # z_k and dL(z_k)/dz_k
        losses: list[Tensor] = []
        h = batch.inputs
        for k in range(last + 1):
            h = batch.run(k, detached(h), keep=k > 0)  # head k-1 still needs h_{k-1}
            z = self.scores(k, h, batch)
            leaf = z.detach().requires_grad_()
            loss = self.criterion(leaf, batch.labels)
            differentiate(loss, batch.scale)
            assert leaf.grad is not None
            graphs.append((z, leaf.grad))
            losses.append(loss.detach())
            del z
        output, d_last = h.detach(), graphs[last][1]
        del h
        for k in reversed(range(last + 1)):
            z, d = graphs.pop()
            # d_k = (1 - w) dL(z_k)/dz_k + w dL(z_K)/dz_K
            differentiate(z, gradient=d if k == last else (1 - w) * d + w * d_last)
            scores = z.detach()
            del z  # and block k's graph
            batch.done(k, losses[k], scores)
        return output
