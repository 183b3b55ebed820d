"""Feedback alignment: gradients go back through fixed random matrices."""

from __future__ import annotations

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families.feedback import FeedbackRule, Matrices, glorot


class FeedbackAlignment(FeedbackRule):
    """Feedback alignment: every layer sends the gradient back through a fixed random matrix B
    instead of its weight W.

    Lillicrap et al. 2016 (arXiv:1411.0247). For a layer y = W x:

        dx = B^T dy,    dW = dy x^T

    With B = W it is backpropagation. The matrices are buffers (`feedback`) and never change. A
    layer that reads the network's input sends nothing back, so it has no matrix.

    Deviation: the paper draws B from a uniform distribution whose interval is tuned for each
    network. Here the interval is `scale` times that of Glorot's initialisation, so that gradients
    keep their size from layer to layer, as they would with freshly initialised weights.

    Args:
        blocks: the network's blocks, made with an example input.
        scale: a positive factor: B ~ U(-a, a) with a = scale sqrt(6 / (fan_in + fan_out)).
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; a scale that is not positive; as `FeedbackRule`.
    """

    @checks_arguments
    def __init__(self, blocks: Blocks, scale: float = 1.0, criterion: Criterion = cross_entropy):
        super().__init__(blocks, criterion)
        if not scale > 0:
            raise InputError(f"FeedbackAlignment(scale={scale}): give a positive number")
        self._keep(lambda weight: glorot(weight, scale))

    def matrices(self) -> Matrices:
        return self._kept_matrices()
