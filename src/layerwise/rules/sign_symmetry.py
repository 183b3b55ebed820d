"""Sign-concordant feedback: gradients go back through the signs of the weights."""

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
    W, with constant or random magnitudes.

    Liao et al. 2016 (arXiv:1510.05067), Xiao et al. 2018 (arXiv:1811.03567), Moskovitz et al. 2018
    (arXiv:1812.06488). For a layer y = W x, with dx = B^T dy and dW = dy x^T, three choices of B; o
    is the product element by element:

        uSF     B = s sign(W)           one magnitude s
        frSF    B = |M| o sign(W)       M drawn once
        brSF    B = |M| o sign(W)       M drawn anew for each batch

    B is computed during the backward pass, layer by layer. frSF keeps M (buffers `feedback`). With
    B = W it is backpropagation: with uSF if all weights of a layer have the size s, with frSF if
    |M| = |W|.

    brSF draws M from PyTorch's random numbers at the start of each `backward`. The same batch then
    gives a different gradient the next time, and each of several accumulated batches has its own M.

    Deviation: |M| is uniform with root mean square s, so that the three variants have magnitudes of
    the same root mean square.

    Args:
        blocks: the network's blocks, made with an example input.
        scale: a positive factor: s = scale sqrt(2 / (fan_in + fan_out)). With scale 1, s is the
            standard deviation of Glorot's initialisation, as in Xiao et al., so that gradients keep
            their size.
        random_magnitude: whether magnitudes are random, |M| ~ U(0, a) with a = sqrt(3) s. Alone it
            gives frSF.
        redraw: whether M is drawn anew for each batch, which gives brSF. It needs
            `random_magnitude`.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; a scale that is not positive; `redraw` without
            `random_magnitude`; as `FeedbackRule`.
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
                "SignSymmetry(redraw=True): constant magnitudes are not drawn; give "
                "random_magnitude=True as well"
            )
        self.scale, self.random_magnitude = scale, random_magnitude
        self.redraw = self.stochastic = redraw
        if random_magnitude and not redraw:
            self._keep(self._draw)

    @torch.no_grad()
    def matrices(self) -> Matrices:
        return {weight: size * weight.sign() for weight, size in self.magnitudes().items()}

    def magnitudes(self) -> Matrices:
        """The magnitudes of this step: |M| in the weight's shape, or s, ()."""
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
