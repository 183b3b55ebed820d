"""Simultaneous perturbation: the loss at moved weights, and nothing but forward passes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.families.perturbation import Directions, Loss, PerturbationRule


class SPSA(PerturbationRule):
    """Simultaneous perturbation (SPSA, MeZO): the loss at moved weights, times the move.

    Spall 1992 (IEEE Transactions on Automatic Control 37, 332-341); with directions drawn again
    from a seed it is MeZO, Malladi et al. 2023 (arXiv:2305.17333):

        grad = (L(theta + eps z) - L(theta - eps z)) / (2 eps) z    two-sided
        grad = (L(theta + eps z) - L(theta)) / eps z                one-sided

    With eps -> 0 it is `ForwardGradient`; on a quadratic loss the two-sided is so for any eps. No
    derivative is taken, so any network and any criterion will do, differentiable or not. Memory is
    that of inference and of one block's moved weights: with `on_block` only one block's gradient
    exists at any time.

    "Gradient descent without a gradient" (Flaxman, Kalai & McMahan 2005, arXiv:cs/0408007) is the
    one-sided without L(theta): of the same mean and a larger variance, and L(theta) is reported
    anyway. A random direction of a large space is worth little; `rank` draws in the smaller one
    that the layers' inputs span (`PerturbationRule`), where the gradient is.

    Deviations: MeZO adds to the weights in place and takes it back with rounding; here they are not
    touched, a block runs with moved copies. A pass at theta itself comes first: it gives what is
    reported and moves BatchNorm's statistics, so that one-sided takes 1 + N passes and two-sided
    1 + 2N for N directions. `rank` is neither's.

    Args:
        blocks: the network; the more blocks, the smaller the copy of one.
        eps: how far each weight moves, in the weights' units.
        directions: how many are averaged.
        two_sided: the difference of the losses on both sides; else of one side and the middle.
        rademacher: draw +1 and -1 (Spall), and not from the normal distribution (Malladi et al.).
        rank: dimensions of its inputs' space in which a layer's weight is moved; 0 for all.
        criterion: of class scores and labels, a scalar.

    Raises:
        InputError: an eps that is not positive; no direction; a negative rank.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        eps: float = 1e-3,
        directions: int = 1,
        two_sided: bool = True,
        rademacher: bool = False,
        rank: int = 0,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, directions, rademacher, rank, criterion)
        if not eps > 0:
            raise InputError(f"SPSA(eps={eps}): give a positive number, such as 1e-3")
        self.eps, self.two_sided = eps, two_sided

    def derivatives(self, loss: Loss, directions: Directions) -> list[Tensor]:
        here = loss()
        found = []
        for n in range(self.directions):

            def moved(by: float, i: int, n: int = n) -> dict[str, Tensor]:
                return {k: torch.add(p, z, alpha=by) for k, p, z in directions.along(i, n)}

            above = loss(functools.partial(moved, self.eps))
            if self.two_sided:
                below = loss(functools.partial(moved, -self.eps))
                found.append((above - below) / (2 * self.eps))
            else:
                found.append((above - here) / self.eps)
        return found
