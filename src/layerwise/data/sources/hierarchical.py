"""Generated images with a known hierarchy: digits drawn level by level."""

from __future__ import annotations

import torch
from torch import Tensor

from layerwise.arguments import at_least, checks_arguments
from layerwise.data.images import Images
from layerwise.data.sources.digits import digits
from layerwise.data.splits import Parts
from layerwise.errors import InputError

THRESHOLD = 128  # a pixel of at least this value belongs to the stroke of a digit


@checks_arguments
def hierarchical(classes: int = 4, patterns: int = 3, side: int = 2, seed: int = 0) -> Parts:
    """The 1,797 digits, hidden two levels deep in black and white images (32x32 for `side` = 2).

    They follow Malach & Shalev-Shwartz 2018 (arXiv:1803.09522), whose images are generated level by
    level; each lower resolution is an image of latent semantic classes:

        level 0   a digit, 8x8 pixels of 2 classes: stroke or not
        level 1   every pixel becomes one of the `patterns` patches of its class, side x side
                  pixels of `classes` classes, drawn at random
        level 2   the same again: patches of black and white pixels

    No two classes share a patch, so each level determines the previous one; but single pixels and
    even single patches reveal little about the digit. `seed` decides which patches belong to which
    class. Deviation: the paper's top-level images, patches and sizes are not known to us.

    Args:
        classes: number of classes at level 1.
        patterns: number of patches of every class.
        side: of a patch, pixels.
        seed: of the patches and of the images.

    Raises:
        InputError: there are too few different patches; a number out of range.
    """
    at_least(1, "hierarchical", 8, side=side)
    at_least(1, "hierarchical", 256, classes=classes, patterns=patterns)
    at_least(0, "hierarchical", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    whole = digits().train
    assert isinstance(whole, Images)
    maps = (whole.images[..., 0] >= THRESHOLD).long()
    for coarse, fine in ((2, classes), (classes, 2)):
        maps = refine(maps, random_patches(coarse, fine, patterns, side, generator), generator)
    images = maps.mul(255).to(torch.uint8).unsqueeze(-1)
    names = tuple(str(digit) for digit in range(10))
    return Parts(Images(images.contiguous(), whole.labels), None, None, names)


def random_patches(
    classes: int, finer: int, patterns: int, side: int, generator: torch.Generator
) -> Tensor:
    """Draw `patterns` patches of finer classes for each class; all patches differ.

    Returns:
        int64 (classes, patterns, side, side), values below `finer`.

    Raises:
        InputError: there are too few different patches.
    """
    pixels = side * side
    if classes * patterns > finer**pixels:
        raise InputError(
            f"hierarchical(patterns={patterns}): {classes} classes need {classes * patterns} "
            f"patches, but there are {finer**pixels} of {side}x{side} pixels of {finer} classes; "
            "give fewer patterns, or larger patches"
        )
    chosen = torch.randperm(finer**pixels, generator=generator)[: classes * patterns]
    values = torch.stack([chosen // finer**k % finer for k in range(pixels)], dim=1)
    return values.view(classes, patterns, side, side)


def refine(maps: Tensor, patches: Tensor, generator: torch.Generator) -> Tensor:
    """Replace every pixel with one of the patches of its class.

    Args:
        maps: classes, int64 (N, H, W).
        patches: of every class, (classes, patterns, S, S).
        generator: draws the patches.

    Returns:
        Finer classes, (N, H S, W S).
    """
    count, height, width = maps.shape
    _, patterns, side, _ = patches.shape
    drawn = patches[maps, torch.randint(patterns, maps.shape, generator=generator)]
    return drawn.permute(0, 1, 3, 2, 4).reshape(count, height * side, width * side)
