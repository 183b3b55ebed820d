"""Simultaneous perturbation: losses at moved weights, and nothing but forward passes."""

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
    """Simultaneous perturbation (SPSA, MeZO): the gradient is estimated from losses at randomly
    moved weights, by forward passes only.

    Spall 1992 (IEEE Transactions on Automatic Control 37, 332-341). With directions that are drawn
    again from a seed it is MeZO, Malladi et al. 2023 (arXiv:2305.17333). With theta all weights and
    z a random direction:

        grad = (L(theta + eps z) - L(theta - eps z)) / (2 eps) z    two-sided
        grad = (L(theta + eps z) - L(theta)) / eps z                one-sided

    In the limit eps -> 0 it is `ForwardGradient`; on a quadratic loss, the two-sided form equals it
    for any eps. No derivative is taken, so the network and the criterion need not be
    differentiable. The memory is that of inference plus one block's moved weights; with `on_block`,
    only one block's gradient exists at a time.

    "Gradient descent without a gradient" (Flaxman, Kalai & McMahan 2005, arXiv:cs/0408007) is the
    one-sided form without L(theta). Its mean is the same and its variance is larger, and L(theta)
    is computed for the report anyway. A random direction in a large space tells little about the
    gradient. With `rank`, directions are drawn from the smaller space that the layers' inputs span,
    in which the gradient lies (see `PerturbationRule`).

    With `normalize` it is FZOO (Dang et al. 2025, arXiv:2506.09034). The differences are divided by
    the standard deviation sigma (over N) of the N losses at moved weights instead of by eps:

        grad = 1/N sum_n (L(theta + eps z_n) - L(theta)) / sigma z_n

    For small eps and +1 and -1 as z, sigma is about eps times the norm of the true gradient, so the
    step is that of normalised gradient descent: the size of the loss does not matter. Each batch
    is divided by its own sigma, also if batches accumulate. The step is 0 if all losses are equal.

    Deviations: MeZO moves the weights in place and moves them back, which rounds; here the weights
    are not touched, and each block runs with moved copies. A pass at theta itself comes first. It
    gives the reported loss and moves BatchNorm's statistics, so N directions take 1 + 2N passes
    two-sided and 1 + N one-sided. FZOO runs the N passes as one batch; here they run one after
    the other. `rank` is in none of the papers.

    Args:
        blocks: the network's blocks. With more blocks, the moved copy of one block is smaller.
        eps: the distance by which weights move, in units of the weights; positive.
        directions: the number of directions whose estimates are averaged, at least 1.
        two_sided: whether to take the difference of the losses on both sides. Otherwise it is that
            between one side and the centre.
        rademacher: whether z is drawn from +1 and -1 (Spall) instead of from the normal
            distribution (Malladi et al.).
        rank: the number of dimensions of a layer's input space in which its weight is moved; 0 for
            all.
        normalize: whether to divide by the losses' standard deviation (FZOO); for at least two
            directions, one-sided. FZOO draws z with `rademacher`.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; an eps that is not positive; no direction; a
            negative rank; `normalize` with one direction or two sides.
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
        normalize: bool = False,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, directions, rademacher, rank, criterion)
        if not eps > 0:
            raise InputError(f"SPSA(eps={eps}): give a positive number, such as 1e-3")
        if normalize and (two_sided or directions < 2):
            raise InputError(
                f"SPSA(normalize=True, directions={directions}, two_sided={two_sided}): the losses "
                "on one side have a standard deviation if there are several; give two_sided=False "
                "and at least 2 directions"
            )
        self.eps, self.two_sided, self.normalize = eps, two_sided, normalize

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
        if self.normalize:
            sigma = torch.stack(found).std(correction=0)  # that of the losses, over eps
            found = [torch.where(sigma > 0, d / sigma, 0.0) for d in found]
        return found
