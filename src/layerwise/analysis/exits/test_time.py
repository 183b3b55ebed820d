"""Class scores that are averaged over several views of each test image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from layerwise.errors import InputError
from layerwise.rules.base import Rule

TestTime = Literal["none", "mirror", "shift"]


def averaged_exits(rule: Rule, x: Tensor, views: TestTime) -> tuple[Tensor | None, ...]:
    """The class scores of every exit, averaged over views of the images (Jordan 2024,
    arXiv:2404.00498, section 3.5).

    Args:
        rule: in eval mode.
        x: images, (B, C, H, W).
        views: none; mirror, each image and its mirror image; shift, these two and, with half of
            the weight, the same moved by a pixel up and left, and down and right, where the edge
            is reflected.

    Returns:
        (B, classes) for every block; None for a block that does not predict.

    Raises:
        InputError: the samples are not images, or too small to be moved.
    """
    if views == "none":
        return rule.exits(x)
    if x.dim() != 4 or not x.is_floating_point():
        raise InputError(
            f"--test_time {views}: it is for images, (B, C, H, W), and got {tuple(x.shape)} of "
            f"{x.dtype}; leave it out"
        )
    if views == "shift" and min(x.shape[2:]) < 2:
        raise InputError(
            f"--test_time shift: images of {x.shape[2]}x{x.shape[3]} cannot be moved by a pixel; "
            "give mirror, or leave it out"
        )
    sums: list[Tensor | None] = [None] * len(rule.blocks)
    for weight, view in _views(x, views):
        for k, scores in enumerate(rule.exits(view)):
            if scores is not None:
                before = sums[k]
                sums[k] = weight * scores if before is None else before + weight * scores
    return tuple(sums)


def _views(x: Tensor, views: TestTime) -> Iterator[tuple[float, Tensor]]:
    """Weights that sum to 1, and views of the images."""
    moved = [] if views == "mirror" else _moved(x)
    for weight, image in [(0.5 if moved else 1.0, x), *((0.25, image) for image in moved)]:
        for view in (image, image.flip(-1)):
            yield weight / 2, view


def _moved(x: Tensor) -> list[Tensor]:
    padded = F.pad(x, (1, 1, 1, 1), "reflect")
    return [padded[..., :-2, :-2], padded[..., 2:, 2:]]


__all__ = ["TestTime", "averaged_exits"]
