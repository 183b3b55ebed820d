"""Successive gradient reconciliation: greedy learning with gradients that agree between blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.autocast import without_autocast
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.objectives import Activity, Classify
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Done, LocalRule, differentiate
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.attention import twice_differentiable


class SGR(LocalRule):
    """Successive gradient reconciliation: greedy learning with a penalty on the difference between
    the gradients of two neighbouring blocks' losses at the activation between the blocks.

    Yang et al. 2024 (arXiv:2406.05222). With L_k the loss of block k's head, as a mean over the
    batch; sg[] stops the gradient:

        d_k    = dL_k / dh_{k-1}                            through block k and its head
        g_k    = dL_k / dh_k                                through its head alone
        loss_k = L_k + weight mean_b |d_k - sg[g_{k-1}]|^2

    g_{k-1} travels forward with the activation h_{k-1}, so nothing comes back from later blocks.
    The gradient of the penalty takes a second backward pass through block k and its head. With
    weight 0 it is `DGL`, bit for bit; with one block it is backpropagation. The reported loss is
    L_k.

    Deviation: the gradients d_k and g_k are those of a sample's own loss instead of the batch
    mean's, so that `weight` does not depend on the batch size. It equals the weight of the
    batch-mean formula divided by the batch size.

    Args:
        blocks: the network's blocks, made with an example input, from which the heads take their
            shapes. All operations of the heads and of every block except the first need second
            derivatives.
        weight: the weight of the penalty, 0 or more.
        head: the recipe of the auxiliary network of every block except the last.
        criterion: the loss function of every block: takes class scores and labels, returns the mean
            over the batch, a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; `blocks` was made without an example; a negative
            weight.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        weight: float = 0.1,
        head: Head = MLP(),
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, Classify(head, criterion, chunk_above=None), criterion)
        if not weight >= 0:
            raise InputError(f"SGR(weight={weight}): give at least 0; with 0 it is DGL")
        self.weight = weight

    def local_step(self, k: int, h: Any, batch: Batch, g_before: Tensor | None = None) -> Done:
        if self.weight == 0 or len(self.blocks) == 1:
            return super().local_step(k, h, batch)
        if g_before is None:
            return self._first_step(h, batch)
        before = h.detach().requires_grad_()
        with twice_differentiable(), as_written(self.blocks[k]):
            h, activity = self._run(k, before, batch)
            L, scores = self.loss(k, activity, batch)
            d, g = self._gradients(L, (before, h), batch)  # dL_k / dh_{k-1}, dL_k / dh_k
            loss = L + self.weight * (d - g_before).square().flatten(1).sum(1).mean()
        learning = [p for p in self.parameters_of(k) if p.requires_grad]
        differentiate(loss, batch.scale, inputs=learning)
        carry = (g.detach(),) if k < len(self.blocks) - 1 else ()
        return Done(h.detach(), L.detach(), scores, carry)

    def _first_step(self, h: Any, batch: Batch) -> Done:
        """The step of the first block, which has no penalty; it gives g_1."""
        h, activity = self._run(0, h, batch)
        h.retain_grad()
        L, scores = self.loss(0, activity, batch)
        differentiate(L, batch.scale)
        assert h.grad is not None
        return Done(h.detach(), L.detach(), scores, (_of_samples(h.grad, batch),))

    def _run(self, k: int, h: Any, batch: Batch) -> tuple[Tensor, Activity]:
        h, activity = self.run(k, h, batch, keep=k > 0)
        if h.requires_grad:
            return h, activity
        h = h.detach().requires_grad_()  # the block is frozen, but its head may learn
        return h, Activity(h)

    def _gradients(self, loss: Tensor, at: tuple[Tensor, ...], batch: Batch) -> list[Tensor]:
        """The gradients of each sample's own loss at the tensors `at`, with their graph."""
        with without_autocast(loss.device):
            found = torch.autograd.grad(batch.scale(loss), at, create_graph=True)
            return [_of_samples(gradient, batch) for gradient in found]


def _of_samples(gradient: Tensor, batch: Batch) -> Tensor:
    """The gradient of each sample's own loss, from that of the scaled mean over the batch."""
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return gradient * (len(gradient) / batch.scaled_one(gradient))
