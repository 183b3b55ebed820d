"""Layers for networks that process overlapping patches of an image separately."""

from __future__ import annotations

from torch import Tensor, nn

from layerwise.errors import InputError
from layerwise.models.building_blocks import Shape


class CutPatches(nn.Module):
    """Arranges overlapping patches side by side: (B, C, H, W) -> (B, C, G size, G' size).

    There are G rows of G' patches.

    Args:
        size: height and width of a patch, pixels.
        stride: distance from one patch to the next, pixels.
    """

    def __init__(self, size: int, stride: int):
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, self.size, self.stride).unfold(3, self.size, self.stride)
        return patches.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def extra_repr(self) -> str:
        return f"size={self.size}, stride={self.stride}"


class PatchWise(nn.Module):
    """Applies a layer to each of the patches that lie side by side, as if it were an image.

    No information passes between patches, neither through the layer's padding nor its pooling. The
    outputs lie side by side again, so they are ordinary feature maps (B, C, H, W).

    Args:
        layer: maps images to feature maps.
        rows, columns: numbers of rows and columns of patches.
    """

    def __init__(self, layer: nn.Module, rows: int, columns: int):
        super().__init__()
        self.layer, self.rows, self.columns = layer, rows, columns

    def forward(self, h: Tensor) -> Tensor:
        grid = (self.rows, self.columns)
        tiles = h.unflatten(3, (self.columns, -1)).unflatten(2, (self.rows, -1))
        h = self.layer(tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))
        return h.unflatten(0, (-1, *grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def extra_repr(self) -> str:
        return f"rows={self.rows}, columns={self.columns}"


def grid_of(shape: Shape, size: int, stride: int, asked_by: str) -> tuple[int, int]:
    """The numbers of rows and columns of patches in an image.

    Args:
        shape: of the image, (C, H, W).
        size: height and width of a patch, pixels.
        stride: distance from one patch to the next, pixels.
        asked_by: the network, for errors.

    Raises:
        InputError: a patch is larger than the image; the stride is below 1 or above `size`.
    """
    _, height, width = shape
    if not 1 <= size <= min(height, width) or not 1 <= stride <= size:
        raise InputError(
            f"{asked_by}(patch={size}, stride={stride}): give a patch of at most the image's "
            f"{height}x{width} pixels, and a stride from 1 to the patch's {size}"
        )
    return (height - size) // stride + 1, (width - size) // stride + 1
