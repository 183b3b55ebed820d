"""Goodness of a block's activities: their mean square."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.labels import mean_of_counted
from layerwise.objectives import Activity, Objective
from layerwise.objectives.batch import Batch

EPS = 1e-8


class Goodness(Objective):
    """Tell positive samples from negative ones by the goodness g of their activities:

        g = mean_j h_j^2 - theta,    mean (softplus(-g_positive) + softplus(g_negative)) / 2

    Hinton 2022 (arXiv:2212.13345), whose goodness is the sum. The mean is over the samples whose
    label counts.

    Args:
        threshold: theta, the mean square that is neither positive nor negative.
        mean: false for g = sum_j h_j^2 - threshold d with d units.
    """

    def __init__(self, threshold: float, mean: bool):
        super().__init__()
        self.threshold, self.mean = threshold, mean

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        """The loss, (), of the output, (2 B, ...), of B positive samples and B negative ones below
        them."""
        positive, negative = goodness(activity.output, self.threshold, self.mean).chunk(2)
        each = F.softplus(-positive) + F.softplus(negative)
        return mean_of_counted(each, batch.labels) / 2


def goodness(h: Tensor, threshold: float, mean: bool) -> Tensor:
    """g of every sample, (B,): the log odds that it is a positive one. Arguments as of
    `Goodness`."""
    over = mean_square(h).flatten() - threshold
    return over if mean else over * h[0].numel()


def normalized(h: Tensor) -> Tensor:
    """N(h): every sample at a mean square of 1."""
    h = h * (mean_square(h) + EPS).rsqrt().to(h.dtype)
    # As it would come from another process: sums over units keep their order, and their bits.
    last = h.dim() == 4 and h.is_contiguous(memory_format=torch.channels_last)
    return h if last else h.contiguous()


def mean_square(h: Tensor) -> Tensor:
    """Over a sample's units, (B, 1, ...); in single precision at least."""
    wide = torch.promote_types(h.dtype, torch.float32)
    # No square of every unit is written down, as the norm is one reduction.
    units = tuple(range(1, h.dim()))
    length = torch.linalg.vector_norm(h, dim=units, keepdim=True, dtype=wide)
    return length.square() / h[0].numel()
