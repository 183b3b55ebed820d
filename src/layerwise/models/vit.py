"""A vision transformer for small images (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerwise.arguments import DEEPEST, at_least, checks_arguments, share
from layerwise.errors import InputError
from layerwise.models.building_blocks import Shape, chain, check_sizes


class Patches(nn.Module):
    """Embeds patches, one token each, with learned positions: (B, C, H, W) -> (B, T, D)."""

    def __init__(self, shape: Shape, patch: int, width: int):
        super().__init__()
        channels, height, wide = shape
        self.project = nn.Conv2d(channels, width, patch, stride=patch)
        tokens = (height // patch) * (wide // patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2) + self.position


class TokenMean(nn.Module):
    """Averages tokens: (B, T, D) -> (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@checks_arguments
def vit(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    patch: int = 4,
    layers: int = 8,
    width: int = 256,
    heads: int = 4,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Pre-norm transformer encoder over patches; the mean of the tokens is classified.

    Args:
        shape: of an image, (C, H, W); both sides multiples of `patch`.
        num_classes: number of classes.
        patch: side of a patch, pixels.
        layers: number of encoder layers.
        width: features of a token; the MLP of a layer has four times this number of units.
        heads: number of attention heads.
        dropout: dropout probability.

    Raises:
        InputError: a size is below 1; `heads` does not divide `width`, or `patch` a side.
    """
    check_sizes("vit", shape, num_classes)
    at_least(0, "vit", DEEPEST, layers=layers)
    share("vit", dropout=dropout)
    _, height, wide = shape
    if min(patch, width, heads) < 1 or width % heads:
        raise InputError(
            f"vit(patch={patch}, width={width}, heads={heads}): give sizes of at least 1, and a "
            "width that the heads divide"
        )
    if height % patch or wide % patch:
        raise InputError(
            f"vit(patch={patch}): {height}x{wide} images do not divide into patches of {patch}; "
            "give a patch that divides both sides"
        )
    named: list[tuple[str, nn.Module]] = [("patches", Patches(shape, patch, width))]
    for i in range(layers):
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        named.append((f"layer{i + 1}", layer))
    classifier = nn.Sequential(nn.LayerNorm(width), TokenMean(), nn.Linear(width, num_classes))
    return chain([*named, ("classifier", classifier)])
