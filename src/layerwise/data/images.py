"""A labelled set of images that lives in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class HasStatistics(Protocol):
    """A training split, in memory or streamed."""

    @property
    def statistics(self) -> Statistics: ...


@dataclass(frozen=True, eq=False)
class Images:
    """Images as bytes, one contiguous tensor: what a batch is cut from without touching Python.

    Args:
        images: uint8 0..255, (N, H, W, C), contiguous. Channels last, so that one pixel is one
            memory access and a crop is a single `index_select` over pixels.
        labels: int64, (N,).
        reference: the training split that gives this set its mean and standard deviation;
            None where that is this set itself.
    """

    images: Tensor
    labels: Tensor
    reference: HasStatistics | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Images({len(self)} of {self.shape} on {self.images.device})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image, the order in which a `Loader` gives it."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel on the scale 0..1, of the reference split."""
        if self.reference is not None:
            return self.reference.statistics
        return pixel_statistics(self.images.split(4096))

    def to(self, device: str | torch.device) -> Images:
        """The same set with images and labels on `device`."""
        return Images(self.images.to(device), self.labels.to(device), self.reference)

    def subset(self, indices: Tensor) -> Images:
        """The images at `indices` (int64, (M,)), copied, in that order."""
        index = indices.to(self.images.device)
        return Images(
            self.images.index_select(0, index), self.labels.index_select(0, index), self.reference
        )

    def normalized_by(self, reference: HasStatistics) -> Images:
        """The same set, its mean and standard deviation taken from `reference`."""
        return Images(self.images, self.labels, reference)

    def coloured(self) -> Images:
        """The same set with three channels."""
        if self.shape[0] == 3:
            return self
        return Images(self.images.repeat(1, 1, 1, 3), self.labels, self.reference)

    def resized(self, size: int) -> Images:
        """The shorter side scaled to `size` (antialiased bilinear), then the central square."""
        _, height, width = self.shape
        if height == width == size:
            return self
        short = min(height, width)
        tall, wide = round(height * size / short), round(width * size / short)
        top, left = (tall - size) // 2, (wide - size) // 2
        parts = []
        for part in self.images.split(1024):  # bounds the float copy
            x = F.interpolate(
                part.permute(0, 3, 1, 2).float(), (tall, wide), mode="bilinear", antialias=True
            )
            x = x[:, :, top : top + size, left : left + size].round_().clamp_(0, 255)
            parts.append(x.to(torch.uint8).permute(0, 2, 3, 1))
        return Images(torch.cat(parts).contiguous(), self.labels, self.reference)


def pixel_statistics(parts: Iterable[Tensor]) -> Statistics:
    """Mean and standard deviation (population) of each channel, on the scale 0..1.

    A histogram per channel keeps the sums exact, so they are the same on every device.

    Args:
        parts: uint8 tensors (..., C).
    """
    counts: list[Tensor] = []
    for part in parts:
        found = [torch.bincount(c.reshape(-1), minlength=256).cpu() for c in part.unbind(-1)]
        counts = [a + b for a, b in zip(counts, found, strict=True)] if counts else found
    level = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for count in counts:
        weight = count.double() / count.sum()
        mean = (weight * level).sum()
        std = (weight * (level - mean) ** 2).sum().sqrt()
        means.append(float(mean))
        stds.append(float(std) or 1.0)  # a constant channel: centred, not divided by zero
    return tuple(means), tuple(stds)
