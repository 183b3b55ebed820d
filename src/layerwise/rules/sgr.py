"""Successive gradient reconciliation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.inplace import starts_in_place
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.objectives import Classify
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule, differentiate
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
        head: Head = MLP(),  # noqa: B008 (frozen)
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, Classify(head, criterion, chunk_above=None), criterion)
        if not weight >= 0:
            raise InputError(f"SGR(weight={weight}): give at least 0; with 0 it is DGL")
        self.weight = weight

    def local_backward(self, i: int, h: Tensor, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        if self.weight == 0 or last == 0:
            return super().local_backward(i, h, batch)
        block, objective = self.blocks[i], self._objective(i)
        assert objective is not None
        wanted, batch.along = batch.along, ()  # g_{k-1}
        g: Tensor | None = None
        with _twice_differentiable(block) if i else contextlib.nullcontext():
            before = h
            if i:
                h = h.detach().requires_grad_()
                # No leaf: hooks on what a module is given do not go with `autograd.grad` else.
                before = h.clone() if starts_in_place(block) else h.view_as(h)
            out = self._run(i, before, batch)
            if not out.requires_grad:  # nothing of the block learns, its head may
                out = out.detach().requires_grad_()
            with self._kept(i, out):
                loss = total = objective(out, batch)
            if i:
                asked, g = self._gradients(loss, (h, out), batch)
                distance = (asked - wanted[0]).square().flatten(1).sum(1).mean()
                total = loss + self.weight * distance
            else:
                out.retain_grad()
        parameters = [p for p in self.parameters_of(i) if p.requires_grad]
        differentiate(total, batch.scale, inputs=parameters if i else None)
        if i < last:
            g = self._of_samples(out.grad, batch) if g is None else g
            batch.along = (g.detach(),)
        batch.finish(i, loss)
        return out.detach()

    def _gradients(self, loss: Tensor, at: tuple[Tensor, ...], batch: Batch) -> tuple[Tensor, ...]:
        """Of a sample's own loss, each with its graph."""
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(batch.scale(loss), at, create_graph=True)
            return tuple(self._of_samples(g, batch) for g in found)

    def _of_samples(self, gradient: Tensor | None, batch: Batch) -> Tensor:
        """A gradient of the scaled mean over the batch as one of each sample's own loss."""
        assert gradient is not None
        one = batch.scale(torch.ones((), device=gradient.device))
        wide = torch.promote_types(gradient.dtype, torch.float32)
        return gradient.to(wide) * (len(gradient) / one)


@contextlib.contextmanager
def _twice_differentiable(block: nn.Module) -> Iterator[None]:
    with twice_differentiable(), as_written(block):
        yield
