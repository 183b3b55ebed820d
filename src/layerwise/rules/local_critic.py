"""Local critics: every block learns from a prediction of the network's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.blocks import Blocks
from layerwise.heads import MLP, Head
from layerwise.inputs import detached
from layerwise.objectives import Classify
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import ForwardRule, differentiate


class LocalCritic(ForwardRule):
    """Local critic training: every block minimises the loss that its critic gives, and every critic
    learns to give the loss that the next one gives.

    Lee & Lee 2019 (arXiv:1805.01128), the cascaded approach. A critic is a head; with L_k(b) the
    loss of sample b by critic k's class scores, and by the network's own for the last block:

        grad_k   = d mean_b L_k(b) / d f_k                      block k, without waiting
        critic_k : d mean_b |L_k(b) - sg[L_{k+1}(b)]| / d critic_k

    Blocks do not train their critics on the labels, nor critics their blocks. With one block it is
    backpropagation. Blocks up to k with critic k are a network of their own (`rule.exits`).
    The reported loss of a block is mean_b L_k(b).

    Deviation: one optimizer for blocks and critics (the authors' critics have Adam, 1e-4).

    Args:
        blocks: the network, made with an example.
        head: the critic of every block but the last.
        criterion: of class scores and labels, a scalar, mean over the batch; every block's. It is
            asked for single samples too, by `torch.vmap`.
    """

    sends_back = True

    def __init__(
        self,
        blocks: Blocks,
        head: Head = MLP(),  # noqa: B008 (frozen)
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks)
        self.criterion = criterion
        last = len(blocks) - 1
        for k in range(len(blocks)):
            self._attach(k, Classify(head if k < last else None, criterion))

    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        """Block i's step: its detached input in, its detached output out.

        Its losses wait in `batch.targets` for the critic before it, those of its own critic in
        `batch.synthetic` for what the next block finds.
        """
        h = batch.run(i, detached(h))
        objective = self._objective(i)
        assert isinstance(objective, Classify)
        if i == len(self.blocks) - 1:
            loss = objective(h, batch)
            each = self._each(h.detach(), batch.y)
            differentiate(loss, batch.scale)
        else:
            leaf = h.detach().requires_grad_()
            with self._kept(i, h):
                # No leaf: hooks on what a module is given do not go with `autograd.grad` else.
                scores = objective.predict(leaf.view_as(leaf), batch.inputs)
            loss = self.criterion(scores, batch.y)
            batch.predicted(scores)
            differentiate(loss, inputs=())  # refuses where gradients are off
            with torch.autocast(h.device.type, enabled=False):
                scaled = batch.scale(loss)
                (gradient,) = torch.autograd.grad(scaled, leaf, retain_graph=True)
            differentiate(h, gradient=gradient)
            each = batch.synthetic[i] = self._each(scores, batch.y)
        batch.finish(i, loss)
        if i:
            batch.targets[i - 1] = each.detach()
        return h.detach()

    def learn(self, i: int, h: Tensor, batch: Batch) -> None:
        """Critic i's step towards the losses that block i+1 found."""
        objective = self._objective(i)
        assert isinstance(objective, Classify)
        target, each = batch.targets.pop(i), batch.synthetic.pop(i, None)
        if each is None:
            each = self._each(objective.predict(h, batch.inputs), batch.y)
        parameters = [p for p in objective.parameters() if p.requires_grad]
        differentiate((each - target).abs().mean(), batch.scale, inputs=parameters)

    def _each(self, scores: Tensor, y: Tensor) -> Tensor:
        """Every sample's loss, (B,)."""
        return torch.vmap(lambda z, label: self.criterion(z[None], label[None]))(scores, y)
