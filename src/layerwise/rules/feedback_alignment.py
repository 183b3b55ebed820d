"""Feedback alignment: the way back goes through fixed random matrices."""

from __future__ import annotations

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families.feedback import FeedbackRule, Matrices, glorot


class FeedbackAlignment(FeedbackRule):
    """Feedback alignment: every layer sends the gradient back through a fixed random matrix B in
    the place of its weight W.

    Lillicrap et al. 2016 (arXiv:1411.0247):

        dx = B^T dy,    dW = dy x^T

    With B = W it is backpropagation. The matrices are buffers (`feedback`), and never change. A
    layer that reads the network's input sends nothing back, and has none.

    Deviation: the paper has B uniform on an interval tuned for each network; here it is Glorot's,
    so that gradients keep their size from layer to layer as the weights of such a network would
    have it, times `scale`.

    Args:
        blocks: the network, made with an example.
        scale: B ~ U(-a, a) with a = scale sqrt(6 / (fan_in + fan_out)).
        criterion: of class scores and labels, a scalar.

    Raises:
        InputError: a scale that is not positive; as `FeedbackRule`.
    """

    @checks_arguments
    def __init__(self, blocks: Blocks, scale: float = 1.0, criterion: Criterion = cross_entropy):
        super().__init__(blocks, criterion)
        if not scale > 0:
            raise InputError(f"FeedbackAlignment(scale={scale}): give a positive number")
        self._keep(lambda weight: glorot(weight, scale))

    def matrices(self) -> Matrices:
        return self._kept_matrices()
