"""Sign symmetry: the way back goes through the weights' signs."""

from __future__ import annotations

import torch
from torch import nn

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.feedback import FeedbackRule, Matrices
from layerwise.objectives.classify import Criterion, cross_entropy


class SignSymmetry(FeedbackRule):
    """Uniform sign-concordant feedback (uSF): every layer sends the gradient back through the signs
    of its weight W, all of one size.

    Liao et al. 2016 (arXiv:1510.05067), Xiao et al. 2018 (arXiv:1811.03567):

        B = s sign(W),    dx = B^T dy,    dW = dy x^T

    B is made anew in every step; there is nothing to keep. Where all of a layer's weights have the
    size s it is backpropagation.

    Args:
        blocks: the network, made with an example.
        scale: s = scale sqrt(2 / (fan_in + fan_out)), the standard deviation of Glorot's
            initialisation, as in Xiao et al., so that gradients keep their size.
        criterion: of class scores and labels, a scalar.

    Raises:
        InputError: a scale that is not positive; as `FeedbackRule`.
    """

    def __init__(self, blocks: Blocks, scale: float = 1.0, criterion: Criterion = cross_entropy):
        super().__init__(blocks, criterion)
        if not scale > 0:
            raise InputError(f"SignSymmetry(scale={scale}): give a positive number")
        self.scale = scale

    @torch.no_grad()
    def matrices(self) -> Matrices:
        return {
            weight: weight.sign() * (self.scale * _deviation(weight))
            for block, names in zip(self.blocks, self.weights, strict=True)
            for weight in map(block.get_parameter, names)
        }


def _deviation(weight: nn.Parameter) -> float:
    """The standard deviation of Glorot's initialisation."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    return (2 / (fan_in + fan_out)) ** 0.5
