"""Direct random target projection: random matrices send the label to every block."""

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
    label, multiplied by a fixed random matrix.

    Frenkel et al. 2021 (arXiv:1909.01311). With B_k the random matrix of block k, for each sample
    (the batch takes the mean); sg[] stops the gradient:

        grad_k = (onehot(y) B_k) dh_k / d f_k,    h_k = f_k(sg[h_{k-1}]),    k < K

    The last block learns as in backpropagation. `DirectFeedbackAlignment` projects the output's
    error; this rule projects only the label, so a block waits for nothing but its input, and its
    graph is freed before the next block runs. Within a block the gradient is the true one, so the
    paper's rule is the case of blocks of one layer. With one block it is backpropagation. Hidden
    blocks have no loss.

    Soft labels replace one-hot ones. A label that does not count (-100) gives no gradient, and the
    mean is over the labels that count.

    A label gives a hidden unit the same gradient in every step, however large its activity already
    is. Activities must therefore be bounded, by tanh as in the paper or by BatchNorm. A network
    with ReLU alone diverges.

    Deviations: gradients are a mean over the batch, like those of the last block (the authors take
    the sum). B_k is uniform, as in `DirectFeedbackAlignment` (the authors use He's initialisation).

    Args:
        blocks: the network's blocks, made with an example input.
        scale: a positive factor: B_k ~ U(-scale / sqrt(d_k), scale / sqrt(d_k)) for d_k units in
            the output of block k.
        shared: whether all blocks use one matrix, whose first d_k columns are B_k.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; as `Projections`; in `backward`, labels that are
            neither class numbers nor one number for each class.
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
        with torch.no_grad():  # onehot(y) B_k, for the mean over the batch
            target = self.feedback.rows(k, labels, h.shape) / self.feedback.counted(labels)
        differentiate(h, batch.scale, target)
        return Done(h.detach())
