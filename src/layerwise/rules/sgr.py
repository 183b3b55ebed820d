"""Successive gradient reconciliation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    """Successive gradient reconciliation: a block's loss should ask of its input what the block
    before it asked of its output.

    Yang et al. 2024 (arXiv:2406.05222). With L_k the loss of block k's head, over the batch:

        d_k    = dL_k / dh_{k-1}                            through block k and its head
        g_k    = dL_k / dh_k                                through its head alone
        loss_k = L_k + weight mean_b |d_k - sg[g_{k-1}]|^2

    g_{k-1} travels with the activation h_{k-1}, so nothing comes back from later blocks. The
    derivative of d_k is a second backward pass through block k and its head. With weight 0 it is
    `DGL`, bit for bit; with one block it is backpropagation. The reported loss is L_k.

    Deviation: d_k and g_k are gradients of a sample's own loss, not of the batch's mean, so that
    the weight does not depend on the batch size: it is the batch-mean formula's divided by the
    batch size.

    Args:
        blocks: the network, made with an example; every operation of its blocks but the first, and
            of the heads, has second derivatives.
        weight: of the distance between the gradients.
        head: the auxiliary network.
        criterion: of class scores and labels, a scalar, mean over the batch; every block's.

    Raises:
        InputError: a negative weight.
    """

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
        """The first block has no gradient to agree with; g_1 comes with the gradient of L_1."""
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
        h = h.detach().requires_grad_()  # nothing of the block learns, its head may
        return h, Activity(h)

    def _gradients(self, loss: Tensor, at: tuple[Tensor, ...], batch: Batch) -> list[Tensor]:
        """The gradients of each sample's own loss, with their graph."""
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(batch.scale(loss), at, create_graph=True)
            return [_of_samples(gradient, batch) for gradient in found]


def _of_samples(gradient: Tensor, batch: Batch) -> Tensor:
    """A gradient of the scaled mean over the batch, as that of each sample's own loss."""
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return gradient * (len(gradient) / batch.scaled_one(gradient))
