"""The forward gradient: a directional derivative in one forward pass, times its direction."""

from __future__ import annotations

from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.calls.forward_mode import dual, forward_mode, tangent
from layerwise.rules.families.perturbation import Directions, Loss, PerturbationRule


class ForwardGradient(PerturbationRule):
    """Forward gradient: the derivative of the loss along a random direction, times that direction.

    Baydin et al. 2022 (arXiv:2202.08587). With v ~ N(0, 1) for every weight, and the derivative
    computed by forward-mode differentiation in the same pass as the loss:

        grad = (dL/dtheta . v) v,    E[grad] = dL/dtheta

    There is no backward pass, and nothing is kept for one: the activations of a block are freed
    once the next block has run. With `directions`, the gradient is the mean over several
    directions, each with a pass of its own. If the N directions were the N axes of weight space,
    each scaled by sqrt(N), it would be backpropagation.

    With `rank`, directions are drawn from the space that the layers' inputs span (see
    `PerturbationRule`), which takes one more pass first. Singhal et al. 2023 (arXiv:2312.04709)
    look for gradients in this space. Here the `rank` dimensions are spanned by random combinations
    of the inputs, which favours the directions in which the inputs are large.

    Deviations: `rank` and `rademacher` are not in Baydin et al.

    Args:
        blocks: the network's blocks.
        directions: the number of directions whose estimates are averaged, at least 1. Each one
            costs a pass in forward mode.
        rademacher: whether v is drawn from +1 and -1 instead of from the normal distribution.
        rank: the number of dimensions of a layer's input space in which its weight is moved; 0 for
            all.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; no direction; a negative rank; in `backward`, an
            operation that has no forward-mode derivative in PyTorch, such as `nn.LSTM` on the CPU.
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
            loss()  # finds the space that the inputs span
        found = []
        for n in range(self.directions):
            with forward_mode("ForwardGradient"):
                moving = loss(lambda i, n=n: {k: dual(p, v) for k, p, v in directions.along(i, n)})
                found.append(tangent(moving).clone())  # dL/dtheta . v_n
        return found
