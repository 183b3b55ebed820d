"""Predict whether the next patch is one of the same image, by a hinge loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.arguments import checks_arguments
from layerwise.objectives.patch_prediction import PatchPrediction, others


def hinge(positive: Tensor, negative: Tensor, predicted: Tensor) -> Tensor:
    """mean max(0, 1 - positive . predicted) + mean max(0, 1 + negative . predicted), (); all three
    (N, D)."""
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    score, other = ((z.to(dtype) * predicted.to(dtype)).sum(1) for z in (positive, negative))
    return F.relu(1 - score).mean() + F.relu(1 + other).mean()


class CLAPP(PatchPrediction):
    """Tell the patch k rows below (a fixation) from a patch of the batch (a saccade) by a hinge
    loss; no labels are read.

    Illing et al. 2021 (CLAPP, arXiv:2010.08262), eq. 3. With c = z_rc the block's output at one
    patch, z the one k rows below and n another patch of the batch, drawn uniformly:

        L = max(0, 1 - z . W_k c) + max(0, 1 + n . W_k c)

    the mean over patches and k. For one layer z = rho(a), a = V x, the gradient is the product of
    a broadcast factor (-1 for a fixation, +1 for a saccade, 0 beyond the margin), a prediction from
    lateral connections, and the activity before and after the synapse (eq. 6 to 8):

        dL / dV_ji = -+ (W_k c)_j rho'(a_j) x_i,  and the same for c with W_k^T z

    so with one layer in each block no other signal is needed.

    Readings: a fixation and a saccade enter each step (CLAPP-s, the synchronous variant of the
    authors; CLAPP draws one of the two); the gradient also reaches c.

    Args:
        grid: number of rows and of columns of patches, to which feature maps are averaged down.
            None takes every position.
        steps: the largest k.
        skip: the number of smallest k that are left out: 1 if neighbouring patches overlap.

    Raises:
        InputError: sizes below one, or `skip` not below `steps`; when it is built, a block without
            feature maps (C, H, W), or a grid with too few rows for `steps`.
    """

    @checks_arguments
    def __init__(self, grid: int | None = 4, steps: int = 2, skip: int = 0):
        super().__init__(grid, steps, skip)

    def told_apart(self, predicted: Tensor, patches: Tensor, right: Tensor) -> Tensor:
        return hinge(patches[right], others(patches, right, 1)[:, 0], predicted)
