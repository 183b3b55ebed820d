"""Bring samples of one class together, and separate samples of different classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from layerwise.arguments import checks_arguments
from layerwise.errors import InputError, choices
from layerwise.labels import IGNORED, class_numbers
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.cosine import cosine
from layerwise.objectives.objective import Objective, Site

# From kernel values, ideal values, and whether a pair counts (1 or 0), all (B, B), to a loss, ().
Proxy = Callable[[Tensor, Tensor, Tensor], Tensor]


def alignment(k: Tensor, ideal: Tensor, counted: Tensor) -> Tensor:
    """-<K, K*> / (||K|| ||K*||), the cosine of the two as vectors of pairs."""
    k, ideal = (k * counted).flatten(), (ideal * counted).flatten()
    return -torch.nn.functional.cosine_similarity(k, ideal, dim=0)


def l1(k: Tensor, ideal: Tensor, counted: Tensor) -> Tensor:
    """mean |K - K*|."""
    return _mean((k - ideal).abs(), counted)


def l2(k: Tensor, ideal: Tensor, counted: Tensor) -> Tensor:
    """mean (K - K*)^2."""
    return _mean((k - ideal).square(), counted)


def contrastive(k: Tensor, ideal: Tensor, counted: Tensor) -> Tensor:
    """-log(sum of exp K over pairs of one class / sum of exp K over all pairs that count)."""
    weight = k.exp() * counted
    together = (weight * (ideal == 1)).sum()
    return _log(weight.sum()) - _log(together)


def _contrastive_negative(k: Tensor, ideal: Tensor, counted: Tensor) -> Tensor:
    """log(mean exp K)."""
    return _log(_mean(k.exp(), counted))


def _log(value: Tensor) -> Tensor:
    """The logarithm; 0 if the batch has no such pair."""
    return value.where(value > 0, 1).log()


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum().clamp_min(1)


PROXIES: dict[str, Proxy] = {
    "alignment": alignment,
    "l1": l1,
    "l2": l2,
    "contrastive": contrastive,
}


class KernelSeparation(Objective):
    """Make outputs similar for samples of one class and dissimilar for samples of two classes,
    without a head.

    The proxy hidden objectives of Duan, Yu & Principe 2020 (arXiv:2005.05541) and Duan & Principe
    2021 (arXiv:2101.03419). The similarity is the kernel that a layer's nonlinearity induces, the
    inner product of outputs scaled to length 1:

        k(a, b) = <h_a, h_b> / (|h_a| |h_b|)

    It lies between `least` and 1. Its ideal value K* is 1 for a pair of one class and `least` for a
    pair of two classes. The loss is over all pairs of different samples whose labels count:

        alignment     -<K, K*> / (||K|| ||K*||)
        l1            mean |K - K*|
        l2            mean (K - K*)^2
        contrastive   -log(sum of exp K over pairs of one class / sum of exp K over all pairs)

    With `negative_only`, only pairs of different classes count, so labels need only say which
    samples differ. The contrastive loss is then log(mean exp K).

    Readings: alignment is over pairs of different samples, the "upper triangle" form that the
    authors' scripts use; for kernels within the bounds, l1 is their difference of sums; l2 is their
    negative mean squared error without the pairs of a sample with itself.

    Deviations: the block's output is taken as it is (the authors' module ends before its
    nonlinearity, with which the next one begins); blocks train together, not one after another.

    Args:
        kind: the loss: "alignment", "l1", "l2" or "contrastive".
        least: smallest possible value of the kernel: 0 after a ReLU, -1 if outputs have both signs.
        negative_only: count only pairs of different classes; not with alignment and `least` 0.

    Raises:
        InputError: another kind, or another least value; when it is built, a network that does not
            give class scores for whole samples; in a step, labels that are not class numbers.
    """

    @checks_arguments
    def __init__(
        self,
        kind: Literal["alignment", "l1", "l2", "contrastive"] = "alignment",
        least: float = 0.0,
        negative_only: bool = False,
    ):
        super().__init__()
        if kind not in PROXIES:
            raise InputError(f"KernelSeparation(kind={kind!r}): {choices(str(kind), PROXIES)}")
        if not -1 <= least < 1:
            raise InputError(
                f"KernelSeparation(least={least}): give the kernel's smallest possible value: 0 "
                "after a ReLU, otherwise -1"
            )
        if negative_only and kind == "alignment" and least == 0:
            raise InputError(
                "KernelSeparation(kind='alignment', negative_only=True): all ideal values would be "
                "0, and nothing can align with them; give another kind, or least=-1"
            )
        self.kind = kind
        self.least = least
        self.negative_only = negative_only

    def build(self, site: Site) -> None:
        if len(site.output_shape) != 1:
            raise InputError(
                f"KernelSeparation: the network gives {site.output_shape} for each sample; this "
                "objective needs one label for each whole sample: (classes,)"
            )

    @property
    def needs_site(self) -> bool:
        return False

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        k_BB = cosine(activity.output)
        y = class_numbers(batch.labels, "KernelSeparation")
        same_BB = y[:, None] == y[None, :]
        known = (y != IGNORED).to(k_BB.dtype)
        known_BB = known[:, None] * known[None, :]
        ideal_BB = torch.where(same_BB, 1.0, self.least).to(k_BB.dtype)
        if self.negative_only:
            proxy = _contrastive_negative if self.kind == "contrastive" else PROXIES[self.kind]
            return proxy(k_BB, ideal_BB, (~same_BB).to(k_BB.dtype) * known_BB)
        others_BB = 1 - torch.eye(len(y), dtype=k_BB.dtype, device=k_BB.device)
        return PROXIES[self.kind](k_BB, ideal_BB, others_BB * known_BB)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, least={self.least}, negative_only={self.negative_only}"
