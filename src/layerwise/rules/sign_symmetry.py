"""Sign symmetry: the way back goes through the weights' signs."""

from __future__ import annotations

import torch
from torch import nn

from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.feedback import FeedbackRule, Matrices, glorot
from layerwise.objectives.classify import Criterion, cross_entropy


class SignSymmetry(FeedbackRule):
    """Sign-concordant feedback: every layer sends the gradient back through the signs of its weight
    W, with magnitudes of one size (uSF), or random ones.

    Liao et al. 2016 (arXiv:1510.05067), Xiao et al. 2018 (arXiv:1811.03567), Moskovitz et al. 2018
    (arXiv:1812.06488):

        uSF     B = s sign(W)           with dx = B^T dy,    dW = dy x^T
        frSF    B = |M| o sign(W)       M drawn once
        brSF    B = |M| o sign(W)       M drawn anew for each batch

    B is made anew in every step; frSF keeps M (buffers `feedback`), the others nothing. Where B = W
    it is backpropagation: under uSF where all of a layer's weights have the size s, under frSF
    where |M| = |W|.

    brSF draws from PyTorch's random numbers at the start of each `backward`: the same batch gives
    another gradient, accumulated batches have each its own M.

    Deviation: |M| is uniform with root mean square s, so that the three differ in nothing else.

    Args:
        blocks: the network, made with an example.
        scale: s = scale sqrt(2 / (fan_in + fan_out)), the standard deviation of Glorot's
            initialisation, as in Xiao et al., so that gradients keep their size.
        random_magnitude: magnitudes |M|, M ~ U(-a, a) with a = sqrt(3) s: frSF.
        redraw: draw M anew for each batch: brSF.
        criterion: of class scores and labels, a scalar.

    Raises:
        InputError: a scale that is not positive; `redraw` of magnitudes that are not random; as
            `FeedbackRule`.
    """

    def __init__(
        self,
        blocks: Blocks,
        scale: float = 1.0,
        random_magnitude: bool = False,
        redraw: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion)
        if not scale > 0:
            raise InputError(f"SignSymmetry(scale={scale}): give a positive number")
        if redraw and not random_magnitude:
            raise InputError(
                "SignSymmetry(redraw=True): magnitudes of one size are not drawn; give "
                "random_magnitude=True, too"
            )
        self.scale, self.random_magnitude, self.redraw = scale, random_magnitude, redraw
        if random_magnitude and not redraw:
            self._keep(self.weights, lambda weight: glorot(weight, scale).abs_())

    @torch.no_grad()
    def matrices(self) -> Matrices:
        weights = [
            block.get_parameter(name)
            for block, names in zip(self.blocks, self.weights, strict=True)
            for name in names
        ]
        if not self.random_magnitude:
            return {w: w.sign() * (self.scale * _deviation(w)) for w in weights}
        if self.redraw:
            return {w: glorot(w, self.scale).abs_().mul_(w.sign()) for w in weights}
        return {w: m * w.sign() for w, m in self._kept_matrices().items()}


def _deviation(weight: nn.Parameter) -> float:
    """The standard deviation of Glorot's initialisation."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    return (2 / (fan_in + fan_out)) ** 0.5
