"""Sign symmetry: the way back goes through the weights' signs."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families.feedback import FeedbackRule, Matrices, deviation, through


class SignSymmetry(FeedbackRule):
    """Sign-concordant feedback: every layer sends the gradient back through the signs of its weight
    W, with magnitudes of one size (uSF), or random ones.

    Liao et al. 2016 (arXiv:1510.05067), Xiao et al. 2018 (arXiv:1811.03567), Moskovitz et al. 2018
    (arXiv:1812.06488):

        uSF     B = s sign(W)           with dx = B^T dy,    dW = dy x^T
        frSF    B = |M| o sign(W)       M drawn once
        brSF    B = |M| o sign(W)       M drawn anew for each batch

    B is made on the way back, layer by layer; frSF keeps M (buffers `feedback`). Where B = W
    it is backpropagation: under uSF where all of a layer's weights have the size s, under frSF
    where |M| = |W|.

    brSF draws from PyTorch's random numbers at the start of each `backward`: the same batch gives
    another gradient, accumulated batches have each its own M.

    Deviation: |M| is uniform with root mean square s, so that the three differ in nothing else.

    Args:
        blocks: the network, made with an example.
        scale: s = scale sqrt(2 / (fan_in + fan_out)), the standard deviation of Glorot's
            initialisation, as in Xiao et al., so that gradients keep their size.
        random_magnitude: magnitudes |M| ~ U(0, a) with a = sqrt(3) s: frSF.
        redraw: draw M anew for each batch: brSF.
        criterion: of class scores and labels, a scalar.

    Raises:
        InputError: a scale that is not positive; `redraw` of magnitudes that are not random; as
            `FeedbackRule`.
    """

    @checks_arguments
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
        self.scale, self.random_magnitude = scale, random_magnitude
        self.redraw = self.stochastic = redraw
        if random_magnitude and not redraw:
            self._keep(self._draw)

    @torch.no_grad()
    def matrices(self) -> Matrices:
        return {weight: size * weight.sign() for weight, size in self.magnitudes().items()}

    def magnitudes(self) -> Matrices:
        """This step's |M|, of the weight's shape, or s, ()."""
        if self.random_magnitude and not self.redraw:
            return self._kept_matrices()
        make = self._draw if self.redraw else self._size
        return {
            weight: make(weight)
            for block, names in zip(self.blocks, self.sending, strict=True)
            for weight in map(block.get_parameter, names)
        }

    def _through(self) -> contextlib.AbstractContextManager[None]:
        return through(self.magnitudes(), "SignSymmetry", signed=True)

    def _draw(self, weight: Tensor) -> Tensor:
        most = math.sqrt(3) * self.scale * deviation(weight)
        return torch.empty_like(weight.detach()).uniform_(0, most)

    def _size(self, weight: Tensor) -> Tensor:
        return torch.tensor(self.scale * deviation(weight), dtype=torch.float64)
