"""Generated views: which half is which, and how they depend on each other."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.data.sources.views import views
from layerwise.objectives.inpaint import Holes


def _halves(dependence: float) -> tuple[Tensor, Tensor, Tensor]:
    """X1, X2 and the class; noise 1, whose bytes stand for -4 to 14."""
    part = views(dependence, classes=3, features=4, noise=1.0, samples=4_000).train
    row = part.images[:, 0, :, 0].double() / 255 * 18 - 4
    hidden = Holes().mask(torch.zeros(1, 1, 1, 8))[0, 0, 0]
    return row[:, ~hidden], row[:, hidden], part.labels


def _covariance(x: Tensor, y: Tensor) -> Tensor:
    return (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)


def test_the_hole_of_inpaint_is_the_second_view() -> None:
    """With dependence 1 the second view is the first."""
    first, second, _ = _halves(1.0)
    assert torch.equal(first, second)


def test_dependence_given_the_class() -> None:
    """The covariance of X2 with X1 within a class is a I for noise 1."""
    for a in (0.0, 0.3):
        first, second, y = _halves(a)
        for label in range(3):
            found = _covariance(first[y == label], second[y == label])
            assert (found - a * torch.eye(4)).abs().max() < 0.12
        assert _covariance(first, second).abs().max() > 1  # through the class
