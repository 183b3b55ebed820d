"""Normalisation of images, and its inverse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.errors import InputError


@dataclass(frozen=True)
class Normalization:
    """The normalisation of images: (x - mean) / std, with x in 0..1.

    Args:
        mean: one number for each channel, or one for all.
        std: as `mean`.

    Raises:
        InputError: another number of values; an std that is not above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise InputError(
                f"Normalization(mean={self.mean}, std={self.std}): give both one number for each "
                "channel, or one for all; every std above 0"
            )

    def undo(self, x: Tensor) -> Tensor:
        """From normalised images, (B, C, H, W), to images in 0..1; values outside are clamped."""
        mean, std = self._as(x)
        return (x * std + mean).clamp(0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """From images in 0..1, (B, C, H, W), to normalised images."""
        mean, std = self._as(x)
        return (x - mean) / std

    def _as(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.mean) not in (1, x.shape[1]):
            raise InputError(
                f"Normalization(mean={self.mean}): the images have {x.shape[1]} channels; give one "
                "number for each, or one for all"
            )
        mean, std = (
            torch.stack([torch.full((), value, dtype=x.dtype, device=x.device) for value in values])
            for values in (self.mean, self.std)  # filled on the device: a copy would wait for it
        )
        return mean[:, None, None], std[:, None, None]


SYMMETRIC = Normalization((0.5,), (0.5,))  # to -1..1, the default of `layerwise.data`
