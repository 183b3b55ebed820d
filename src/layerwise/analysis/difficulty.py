"""The difficulty of samples: learned late, forgotten or never learned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from layerwise.errors import InputError


@dataclass(frozen=True, eq=False)
class Difficulty:
    """How well N samples were predicted over the epochs of a training.

    Attributes:
        consistency: the share of epochs after which each was predicted correctly, (N,) float64.
        forgotten: how often each was correct after one epoch and wrong after the next, (N,) int64.
        learned: whether each was ever correct, (N,) bool. A sample that was learned and never
            forgotten is called unforgettable.
    """

    consistency: Tensor
    forgotten: Tensor
    learned: Tensor

    @property
    def unforgettable(self) -> Tensor:
        """Whether each sample was learned and never forgotten, (N,) bool."""
        return self.learned & (self.forgotten == 0)


def difficulty(right: Tensor) -> Difficulty:
    """Compute the difficulty of samples from their predictions after every epoch.

    Forgetting events and unforgettable examples: Toneva et al. 2019 (arXiv:1812.05159), algorithm
    1. Deviation: the paper tests a sample when its batch is trained on; here all samples are tested
    after every epoch, in eval mode and without augmentation. Consistency is the correctness of
    Swayamdipta et al. 2020 (arXiv:2009.10795).

    Args:
        right: whether each sample was predicted correctly, (epochs, N) bool, epochs in order.

    Raises:
        InputError: `right` has another shape, or no epoch.
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
