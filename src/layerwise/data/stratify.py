"""Dividing a labelled set in two with the classes in proportion."""

from __future__ import annotations

import torch
from torch import Tensor


def stratify(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide a set in two with the classes in proportion.

    Of every class, the second part gets its share rounded down. The classes with the largest
    remainders then give one more each, until the second part has `round(N * share)` samples. At
    least one sample of every class stays in the first part.

    Args:
        labels: int64, (N,); without regard to real ones, (N, D).
        share: of the second part, in (0, 1).
        seed: of the choice; torch's global generator is neither read nor changed.

    Returns:
        The sorted indices of the first part, (N - M,), and of the second, (M,).
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    if labels.is_floating_point():
        first = len(labels) - round(len(labels) * share)
        return order[:first].sort().values, order[first:].sort().values
    labels = labels.cpu()[order]
    count = torch.bincount(labels)
    quota = count * share
    take = quota.floor().long()
    missing = round(len(labels) * share) - int(take.sum())
    take[(quota - take).argsort(descending=True, stable=True)[:missing]] += 1
    take = take.minimum((count - 1).clamp_min(0))
    grouped = labels.argsort(stable=True)  # by class, shuffled within a class
    rank = torch.arange(len(labels)) - (count.cumsum(0) - count)[labels[grouped]]
    second = rank < take[labels[grouped]]
    chosen = order[grouped]
    return chosen[~second].sort().values, chosen[second].sort().values
