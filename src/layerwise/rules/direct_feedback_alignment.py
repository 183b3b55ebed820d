"""Direct feedback alignment: the output's error goes to every block through a random matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.batch import Report, identity
from layerwise.blocks import Blocks
from layerwise.blocks.inplace import starts_in_place
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.projection import Projections
from layerwise.rule import Needs, OnBlock, Rule, Scale, differentiate


class DirectFeedbackAlignment(Rule):
    """Direct feedback alignment: the gradient of every block's output is the network's output error
    through a fixed random matrix of the block's own.

    Nøkland 2016 (arXiv:1609.01596), eq. 7; for transformers Launay et al. 2020 (arXiv:2006.12878).
    With the class scores z:

        e      = dL/dz
        grad_k = (e B_k) dh_k / d f_k,    h_k = f_k(sg[h_{k-1}]),    k < K

    The last block learns as in backpropagation. No gradient passes between blocks, and that of a
    block's input is never computed; within a block it is the true one, so the paper's rule is that
    of blocks of one layer. With B_k the true dz/dh_k, and with one block, it is backpropagation.

    Every block's graph is kept until the error is there, as in backpropagation.

    Deviations: class scores for every token go back token by token; an output (B, T, D) of a
    network that gives one label has the same projection for all T; feature maps have one of their
    own for every unit, as in the paper.

    Args:
        blocks: the network, made with an example.
        scale: B_k ~ U(-scale / sqrt(d_k), scale / sqrt(d_k)) with d_k units in the block's output.
        shared: keep one matrix for all blocks (Launay et al.), whose first d_k columns are B_k.
        criterion: of class scores and labels, a scalar.

    Raises:
        InputError: as `Projections`.
    """

    needs = Needs.FORWARD | Needs.ERROR

    def __init__(
        self,
        blocks: Blocks,
        scale: float = 1.0,
        shared: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks)
        self.objectives[str(len(blocks) - 1)] = Classify(criterion=criterion)
        self.feedback = Projections(blocks, scale, shared, "DirectFeedbackAlignment")

    def backward(
        self, x: Tensor, y: Tensor, *, scale: Scale = identity, on_block: OnBlock | None = None
    ) -> Report:
        batch = self._batch(x, y, scale)
        last = len(self.blocks) - 1
        outputs: list[Tensor] = []  # h_k, with block k's graph
        h = x
        for block in self.blocks:
            h = h.detach()
            h = block(h.clone() if starts_in_place(block) else h)
            outputs.append(h)
        scores = h.detach().requires_grad_()
        loss = self.objectives[str(last)](scores, batch)
        differentiate(loss, scale, inputs=(scores,))
        batch.finish(last, loss)
        e = scores.grad
        assert e is not None
        del h
        for k in range(len(self.blocks)):
            h = outputs.pop(0)
            if h.requires_grad:
                differentiate(h, gradient=e if k == last else self._project(k, e, h))
            del h  # and block k's graph
            if on_block is not None:
                on_block(k)
        return batch.report(scores, len(self.blocks))

    @torch.no_grad()
    def _project(self, k: int, e: Tensor, h: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            return self.feedback(k, e, h.shape)
