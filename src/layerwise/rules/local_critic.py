"""Local critics: every block learns from a prediction of the network's loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.autocast import without_autocast
from layerwise.blocks import Blocks
from layerwise.heads import MLP, Head
from layerwise.inputs import detached
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Done, LocalRule, Needs, differentiate, refuse_without_gradients
from layerwise.rules.base.objectives import of_heads


class LocalCritic(LocalRule):
    """Local critic training: every block minimises the loss that its critic predicts, and every
    critic learns to predict the loss of the next one.

    Lee & Lee 2019 (arXiv:1805.01128), the cascaded approach. A critic is a head. L_k(b) is the loss
    of sample b from the class scores of critic k, and L_K(b) that from the network's own class
    scores; sg[] stops the gradient:

        grad_k   = d mean_b L_k(b) / d f_k                      block k, without waiting
        critic_k : d mean_b |L_k(b) - sg[L_{k+1}(b)]| / d critic_k

    A block's loss does not train its critic, and a critic's loss does not train its block. With one
    block it is backpropagation. The blocks up to k and critic k together are a network of their own
    (`rule.exits`). The reported loss of block k is mean_b L_k(b).

    Lee, Hsieh & Lee 2021 (arXiv:2102.01963) also train recurrent networks, by groups of layers.
    Here `cut` divides such a network between its layers; a block's gradient passes back through
    time, but not to other blocks. The loss of a sample of tokens is the mean over its tokens.

    Deviation: one optimizer steps blocks and critics (the authors' critics have Adam with learning
    rate 1e-4).

    Args:
        blocks: the network's blocks, made with an example input, from which the heads take their
            shapes.
        head: the recipe of the critic of every block except the last.
        criterion: the loss function of every block: takes class scores and labels, returns the mean
            over the batch, a scalar. It must also work on single samples under `torch.vmap`.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example.
    """

    needs = Needs.FORWARD | Needs.NEXT

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        head: Head = MLP(),
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, of_heads("LocalCritic", blocks, head, criterion), criterion)
        self.criterion = criterion

    def local_step(self, k: int, h: Any, batch: Batch) -> Done:
        h = batch.run(k, detached(h))
        if k == len(self.blocks) - 1:
            loss, scores = self.loss(k, Activity(h), batch)
            losses = self._each(h.detach(), batch.labels)  # L_K(b)
            differentiate(loss, batch.scale)
            return Done(h.detach(), loss.detach(), scores, back=losses.detach() if k else None)
        leaf = h.detach().requires_grad_()
        scores = self.scores(k, leaf.view_as(leaf), batch)
        loss = self.criterion(scores, batch.labels)
        refuse_without_gradients()
        with without_autocast(h.device):
            # The critic's graph is needed again when block k+1 has its losses.
            (gradient,) = torch.autograd.grad(batch.scale(loss), leaf, retain_graph=True)
        differentiate(h, gradient=gradient)
        losses = self._each(scores, batch.labels)  # L_k(b)
        back = losses.detach() if k else None
        return Done(h.detach(), loss.detach(), scores.detach(), back=back, kept=losses)

    def learn(self, k: int, done: Done, back: Tensor, batch: Batch) -> None:
        """Critic k learns to predict the losses L_{k+1}(b) that block k+1 found."""
        losses = done.kept
        if losses is None:
            losses = self._each(self.scores(k, done.out, batch), batch.labels)
        critic = [p for p in self.objectives[k].parameters() if p.requires_grad]
        # d mean_b |L_k(b) - sg[L_{k+1}(b)]| / d critic_k
        differentiate((losses - back).abs().mean(), batch.scale, inputs=critic)

    def _each(self, scores: Tensor, y: Tensor) -> Tensor:
        """Every sample's loss, (B,)."""
        return torch.vmap(lambda z, label: self.criterion(z[None], label[None]))(scores, y)
