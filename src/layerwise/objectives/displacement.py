"""Move the input as little as possible: a penalty for blocks that keep its shape."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.errors import InputError
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import Objective


class Displacement(Objective):
    """Move the block's input as little as possible: a penalty to add to another objective.

    Transport regularized greedy learning (TRGL): Karkar et al. 2023 (arXiv:2309.17357). With
    h_k = f_k(sg[h_{k-1}]), of D numbers for each sample, where sg[] stops the gradient:

        loss_k = mean over samples of |h_k - h_{k-1}|^2 / D     if both have the same shape, else 0

    The authors add |h_k - h_{k-1}|^2 / (2 tau) to the loss of a block's classifier, so a weight w
    here is their tau = D / (2 w). It is meant for residual blocks, which start near the identity.
    The last block is not penalised, as it predicts. It has no head and no parameters, and adds no
    FLOPs worth counting.

    Deviation: the distance is between a block's output and its input, also where the output has
    passed an activation after the sum, as in ResNets; D is in the equation, so that a weight means
    the same for every block.

    Raises:
        InputError: in a step, a rule that does not tell the objective the block's input, such as
            `LocalForwardGradient`. The rule itself refuses a block, also the first one, that takes
            several tensors or a dict.
    """

    @property
    def reads_input(self) -> bool:
        return False

    @property
    def reads_block_input(self) -> bool:
        return True

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        after, before = activity.output, activity.input
        if before is None:
            raise InputError(
                "Displacement: this rule does not tell an objective its block's input; give it to "
                "a rule whose blocks each minimise a loss of their own, such as Greedy"
            )
        wide = torch.promote_types(after.dtype, torch.float32)
        if after.shape != before.shape:
            return after.new_zeros((), dtype=wide)
        return (after.to(wide) - before.to(wide)).square().mean()
