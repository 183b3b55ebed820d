"""Equilibrium propagation: the gradient is how the minimum of an energy responds to a nudge."""

from __future__ import annotations

from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.blocks import Blocks
from layerwise.errors import InputError
from layerwise.objectives import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import Needs, Rule
from layerwise.rules.calls.as_written import as_written
from layerwise.rules.calls.precision import full_precision
from layerwise.rules.families.energy import Energy, check_inference


class EquilibriumPropagation(Rule):
    """Equilibrium propagation: weights learn from how the activities that minimise an energy
    respond to a small push towards a lower loss.

    Scellier & Bengio 2017 (arXiv:1602.05179), theorem 1. The energy is the squared prediction error
    of the blocks, whose minimum is the feed-forward pass. With L_b the loss of sample b, h_0 = x,
    theta_k the weights of block k, and h^beta the activities after `steps` of gradient descent from
    the feed-forward pass:

        F_beta = sum_b ( 1/2 sum_{k<K} |h_k - f_k(h_{k-1})|^2 + beta L_b(f_K(h_{K-1})) )
        h_k   <- h_k - step_size dF_beta / dh_k
        grad_k = mean_b 1 / beta (dF_beta/d theta_k at h^beta - dF_0/d theta_k at h^0)

    The free phase (beta = 0) is the feed-forward pass itself, where F_0 and its derivatives are 0,
    so only the nudged phase runs. With `centred` (Laborieux et al. 2021, arXiv:2006.03824) the
    gradient is half the difference of the phases with beta and -beta, so its error falls with
    beta^2 instead of beta. If beta -> 0 and there are enough steps for the activities to settle,
    the gradient is backpropagation's (Millidge et al. 2022, arXiv:2206.02629). With beta = 1, and
    without `centred`, it is that of `PredictiveCoding`. With one block it is backpropagation, bit
    for bit.

    Deviations: the paper's energy is Hopfield's, with symmetric weights, and the network predicts
    by relaxing in a free phase; here any network predicts by its feed-forward pass. The energy
    contains each sample's own loss instead of the batch mean, so that beta does not depend on the
    batch size.

    Args:
        blocks: the network's blocks.
        beta: the strength of the nudge, positive. In single precision it should not be much below
            0.01, because the rule subtracts nearly equal activities.
        steps: the number of steps in a nudged phase, at least K - 1 for K blocks, because the error
            moves back by one block in a step.
        step_size: the step size of a nudged phase, positive. It is stable below about 2 / (1 +
            s)^2, with s the largest singular value of a block's derivative.
        centred: whether to nudge with beta and with -beta, which takes two nudged phases.
        criterion: the loss function of the network's output: takes class scores and labels, returns
            the mean over the batch, a scalar.

    Raises:
        InputError: `blocks` is not a `Blocks`; fewer steps than the error needs to reach the first
            block; a step_size or beta that is not positive.
    """

    needs = Needs.BACKWARD

    @checks_arguments
    def __init__(
        self,
        blocks: Blocks,
        beta: float = 0.1,
        steps: int = 20,
        step_size: float = 0.1,
        centred: bool = True,
        criterion: Criterion = cross_entropy,
    ):
        super().__init__(blocks, criterion=criterion)
        check_inference("EquilibriumPropagation", blocks, steps, step_size)
        if not beta > 0:
            raise InputError(
                f"EquilibriumPropagation(beta={beta}): give more than 0, such as 0.1; "
                "centred=True nudges both ways"
            )
        self.beta, self.steps, self.step_size, self.centred = beta, steps, step_size, centred

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        # Blocks run many times, with other buffers, so they run uncompiled.
        with as_written(self.blocks), full_precision(batch.inputs, self.blocks) as x:
            energy = Energy(batch, self.blocks, lambda h: self.loss(last, Activity(h), batch), x)
            nudges = (self.beta, -self.beta) if self.centred else (self.beta,)
            phases = [(beta, energy.relax(self.steps, self.step_size, beta)) for beta in nudges]
            energy.learn(phases)
        return energy.output
