"""The goodness of a block's activities, their mean square, as an objective."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from layerwise.labels import mean_of_counted
from layerwise.objectives import Activity, Objective
from layerwise.objectives.batch import Batch

EPS = 1e-8


class Goodness(Objective):
    """Distinguish positive samples from negative ones by the goodness g of their activities h:

        g = mean_j h_j^2 - theta,    L = mean (softplus(-g_positive) + softplus(g_negative)) / 2

    Hinton 2022 (arXiv:2212.13345), with the sum over units instead of the mean. L is in nats, the
    mean over the samples whose label counts.

    Args:
        threshold: theta, the mean square at which a sample is equally likely to be positive or
            negative.
        mean: whether g uses the mean; otherwise, with d units, g = sum_j h_j^2 - theta d.
    """

    def __init__(self, threshold: float, mean: bool):
        super().__init__()
        self.threshold, self.mean = threshold, mean

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        """The loss, (). The output is (2 B, ...): B positive samples, then B negative ones."""
        positive, negative = goodness(activity.output, self.threshold, self.mean).chunk(2)
        each = F.softplus(-positive) + F.softplus(negative)
        return mean_of_counted(each, batch.labels) / 2


def goodness(h: Tensor, threshold: float, mean: bool) -> Tensor:
    """g of every sample, (B,): the log odds that the sample is positive.

    Args:
        h: activities, (B, ...).
        threshold, mean: as in `Goodness`.
    """
    over = mean_square(h).flatten() - threshold
    return over if mean else over * h[0].numel()


def normalized(h: Tensor) -> Tensor:
    """N(h), in the shape of h: every sample scaled to a mean square of 1."""
    h = h * (mean_square(h) + EPS).rsqrt().to(h.dtype)
    # In the memory format in which it would arrive from another process, so that sums over units
    # have the same order and the same bits.
    last = h.dim() == 4 and h.is_contiguous(memory_format=torch.channels_last)
    return h if last else h.contiguous()


def mean_square(h: Tensor) -> Tensor:
    """The mean square over a sample's units, (B, 1, ...), in at least single precision."""
    wide = torch.promote_types(h.dtype, torch.float32)
    # The norm is one reduction, so the squares of all units are not stored.
    units = tuple(range(1, h.dim()))
    length = torch.linalg.vector_norm(h, dim=units, keepdim=True, dtype=wide)
    return length.square() / h[0].numel()
