"""Which samples a network learns late, forgets or never learns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from layerwise.errors import InputError


@dataclass(frozen=True, eq=False)
class Difficulty:
    """How N samples fared over the epochs of a training.

    Attributes:
        consistency: the share of the epochs after which each was predicted right, (N,) float64.
        forgotten: how often each was right after one epoch and wrong after the next, (N,) int64.
        learned: whether each was ever right, (N,) bool. One that was learned and never forgotten is
            called unforgettable.
    """

    consistency: Tensor
    forgotten: Tensor
    learned: Tensor

    @property
    def unforgettable(self) -> Tensor:
        """(N,) bool."""
        return self.learned & (self.forgotten == 0)


def difficulty(right: Tensor) -> Difficulty:
    """Read difficulty off which samples were predicted right after each epoch.

    Forgetting events and unforgettable examples: Toneva et al. 2019 (arXiv:1812.05159), algorithm
    1. Deviation: there a sample is looked at when its batch is trained on; here all of them after
    every epoch, in eval mode and without augmentation. Consistency is the correctness of
    Swayamdipta et al. 2020 (arXiv:2009.10795).

    Args:
        right: (epochs, N) bool, in order.

    Raises:
        InputError: no epoch.
    """
    if right.dim() != 2 or not len(right):
        raise InputError(
            f"difficulty(right): got {tuple(right.shape)}; give (epochs, samples), 1 epoch or more"
        )
    return Difficulty(
        consistency=right.double().mean(0),
        forgotten=(right[:-1] & ~right[1:]).sum(0),
        learned=right.any(0),
    )
