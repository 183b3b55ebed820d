"""The forward gradient: a directional derivative in one forward pass, times its direction."""

from __future__ import annotations

from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.calls.forward_mode import dual, forward_mode, tangent
from layerwise.rules.families.perturbation import Directions, Loss, PerturbationRule


class ForwardGradient(PerturbationRule):
    """The forward gradient: the loss's derivative along a random direction, times the direction.

    Baydin et al. 2022 (arXiv:2202.08587); with v ~ N(0, 1) in every weight, and the derivative
    found in forward mode, in the pass that computes the loss:

        grad = (dL/dtheta . v) v,    E[grad] = dL/dtheta

    There is no backward pass and nothing is kept for one: a block's activations are gone when the
    next has run. With `directions` the mean over as many, each a pass of its own; over the axes,
    scaled by the root of their number, it is backpropagation.

    `rank` draws directions in what the layers' inputs span (`PerturbationRule`), at the price of a
    pass before: Singhal et al. 2023 (arXiv:2312.04709) find gradients there. One draws the space
    itself from random combinations of the inputs, which weighs the directions that carry most.

    Deviations: `rank` and `rademacher` are not Baydin's.

    Args:
        blocks: the network; of one block or many.
        directions: how many are averaged, each for a pass in forward mode.
        rademacher: draw +1 and -1, and not from the normal distribution.
        rank: dimensions of its inputs' space in which a layer's weight is moved; 0 for all.
        criterion: of class scores and labels, a scalar.

    Raises:
        InputError: no direction; a negative rank; in `backward`, an operation that has no
            forward-mode derivative in PyTorch, such as `nn.LSTM` on the CPU.
    """

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        directions: int = 1,
        rademacher: bool = False,
        rank: int = 0,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, directions, rademacher, rank, criterion)

    def derivatives(self, loss: Loss, directions: Directions) -> list[Tensor]:
        if self.rank:
            loss()  # finds what the inputs span
        found = []
        for n in range(self.directions):
            with forward_mode("ForwardGradient"):
                moving = loss(lambda i, n=n: {k: dual(p, v) for k, p, v in directions.along(i, n)})
                found.append(tangent(moving).clone())  # dL/dtheta . v_n
        return found
