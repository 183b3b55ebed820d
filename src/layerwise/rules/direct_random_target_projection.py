"""Direct random target projection: every block learns from the label through a random matrix."""

from __future__ import annotations

from typing import Any

import torch

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Done, LocalRule, differentiate
from layerwise.rules.families.projection import Projections


class DirectRandomTargetProjection(LocalRule):
    """Direct random target projection (DRTP): the gradient of every block's output is the one-hot
    label through a fixed random matrix of the block's own.

    Frenkel et al. 2021 (arXiv:1909.01311). Per sample, and mean over the batch:

        grad_k = (onehot(y) B_k) dh_k / d f_k,    h_k = f_k(sg[h_{k-1}]),    k < K

    The last block learns as in backpropagation. What `DirectFeedbackAlignment` asks of the output's
    error the label alone gives, so that a block waits for nothing but its input; its graph is gone
    before the next block runs. Within a block the gradient is the true one, so the paper's rule is
    that of blocks of one layer. With one block it is backpropagation. Hidden blocks have no loss.
    Soft labels take the place of one-hot ones. A label that does not count asks for nothing, and
    the mean is over those that do.

    A label asks the same of a hidden unit in every step, however far that has gone: outputs must be
    bounded, as by the paper's tanh or by BatchNorm. A network with ReLU alone diverges.

    Deviations: the mean over the batch, as the last block's (the authors': the sum); B_k is
    uniform as in `DirectFeedbackAlignment` (the authors': He's).

    Args:
        blocks: the network, made with an example.
        scale: B_k ~ U(-scale / sqrt(d_k), scale / sqrt(d_k)) with d_k units in the block's output.
        shared: keep one matrix for all blocks, whose first d_k columns are B_k.
        criterion: of class scores and labels, a scalar; the last block's.

    Raises:
        InputError: as `Projections`; in a step, labels that are neither class numbers nor one
            number for each class.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        scale: float = 1.0,
        shared: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        self.feedback = Projections(blocks, scale, shared, "DirectRandomTargetProjection")

    def local_step(self, k: int, h: Any, batch: Batch) -> Done:
        if k == len(self.blocks) - 1:
            return super().local_step(k, h, batch)
        h = batch.run(k, h)
        labels = batch.labels
        with torch.no_grad():
            target = self.feedback.rows(k, labels, h.shape) / self.feedback.counted(labels)
        differentiate(h, batch.scale, target)
        return Done(h.detach())
