"""Equilibrium propagation: the gradient is how the energy's minimum answers to a nudge."""

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
    """Equilibrium propagation on the energy whose minimum is the feed-forward pass.

    Scellier & Bengio 2017 (arXiv:1602.05179), theorem 1. With L_b the loss of sample b, h_0 = x,
    and h^beta the activities after `steps` of gradient descent from the feed-forward pass:

        F_beta = sum_b ( 1/2 sum_{k<K} |h_k - f_k(h_{k-1})|^2 + beta L_b(f_K(h_{K-1})) )
        h_k   <- h_k - step_size dF_beta / dh_k
        grad_k = mean_b 1 / beta (dF_beta/d theta_k at h^beta - dF_0/d theta_k at h^0)

    The free phase is the feed-forward pass itself, where F_0 and its derivatives are 0, so only the
    nudged one is run. `centred` (Laborieux et al. 2021, arXiv:2006.03824) takes half the difference
    of beta and -beta, whose error falls with beta^2 and not beta. As beta goes to 0, and with steps
    enough for the activities to settle, the gradient is backpropagation's (Millidge et al. 2022,
    arXiv:2206.02629); with beta = 1 it is that of `PredictiveCoding`. With one block it is
    backpropagation, bit for bit.

    Deviations: the paper's energy is Hopfield's, with symmetric weights, and its free phase a
    relaxation that gives the prediction; here any network predicts as it always does. Energies are
    those of samples, not of the batch's mean, so that beta does not depend on the batch size.

    Args:
        blocks: the network.
        beta: strength of the nudge; in single precision not much below 0.01, for what it moves is
            told from the feed-forward pass by subtraction.
        steps: of the nudged phase; the error moves back one block in a step.
        step_size: of the nudged phase; stable below about 2 / (1 + s)^2, with s the largest
            singular value of a block's derivative.
        centred: nudge both ways, which takes two phases.
        criterion: of class scores and labels, a scalar, mean over the batch.

    Raises:
        InputError: fewer steps than the error needs to the first block; a step_size or beta that is
            not positive.
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
                f"EquilibriumPropagation(beta={beta}): give more than 0, such as 0.1; `centred` "
                "nudges both ways"
            )
        self.beta, self.steps, self.step_size, self.centred = beta, steps, step_size, centred

    def step(self, batch: Batch) -> Tensor:
        last = len(self.blocks) - 1
        # A block runs many times, with other buffers.
        with as_written(self.blocks), full_precision(batch.inputs, self.blocks) as x:
            energy = Energy(batch, self.blocks, lambda h: self.loss(last, Activity(h), batch), x)
            nudges = (self.beta, -self.beta) if self.centred else (self.beta,)
            phases = [(beta, energy.relax(self.steps, self.step_size, beta)) for beta in nudges]
            energy.learn(phases)
        return energy.output
