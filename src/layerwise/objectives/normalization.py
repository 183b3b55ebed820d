"""From the images that a network sees back to colours between 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.errors import InputError


@dataclass(frozen=True)
class Normalization:
    """How images were normalised: (x - mean) / std, with x on the scale 0..1.

    Args:
        mean: per channel, or one for all.
        std: as `mean`.

    Raises:
        InputError: other lengths, or an std that is not above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise InputError(
                f"Normalization(mean={self.mean}, std={self.std}): give one number a channel, or "
                "one for all, for each of the two; every std above 0"
            )

    def undo(self, x: Tensor) -> Tensor:
        """Normalised (B, C, H, W) -> between 0 and 1; what lies outside is cut off."""
        mean, std = self._as(x)
        return (x * std + mean).clamp(0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """On the scale 0..1 (B, C, H, W) -> normalised."""
        mean, std = self._as(x)
        return (x - mean) / std

    def _as(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.mean) not in (1, x.shape[1]):
            raise InputError(
                f"Normalization(mean={self.mean}): images of {x.shape[1]} channels; give one "
                "number for each"
            )
        mean, std = (
            torch.stack([torch.full((), value, dtype=x.dtype, device=x.device) for value in values])
            for values in (self.mean, self.std)  # filled there: a copy would hold up the host
        )
        return mean[:, None, None], std[:, None, None]


SYMMETRIC = Normalization((0.5,), (0.5,))  # -1..1, as `layerwise.data` gives images by default
