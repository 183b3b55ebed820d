"""Generated points whose label says whether they lie in a fractal, the Cantor dust."""

from __future__ import annotations

import torch

from layerwise.arguments import at_least, checks_arguments
from layerwise.data.images import Images
from layerwise.data.splits import Parts

DIGITS = 5  # ternary digits of a coordinate: 243 different bytes
TEST = 10_000  # samples of the test part
MOST_NUMBERS = 1 << 28  # of a training part


@checks_arguments
def cantor(
    dimension: int = 2, depth: int = 5, fine: float = 0.0, samples: int = 50_000, seed: int = 0
) -> Parts:
    """Points of a cube; the label says whether each of the first `depth` ternary digits of every
    coordinate is 0 or 2: a Cantor set of that depth.

    Malach & Shalev-Shwartz 2019 (arXiv:1903.03488). Half of the points lie in the set. The others
    leave it at a level j from 1, the coarsest, to `depth`: their j-th digits are all 1, those
    before are 0 or 2, and those after are random. A point that has not left it before leaves it at
    level j with probability

        1 - 2^(-w_j),    w_j = j^fine / (1^fine + ... + depth^fine)

    With `fine` 0 this is the same for all levels; the larger it is, the more of the points differ
    from the set only in its finest details. Deviation: points lie on a grid of 243 per axis, which
    keeps five levels, as bytes 0 to 242.

    Args:
        dimension: number of coordinates, which are pixels of a row, (1, 1, dimension).
        depth: levels of the fractal, 1 to 5.
        fine: 0 or more.
        samples: number of training samples; the test part has another 10,000.
        seed: of the samples.

    Raises:
        InputError: a number out of range.
    """
    at_least(1, "cantor", DIGITS, depth=depth)
    at_least(1, "cantor", dimension=dimension)
    at_least(1, "cantor", MOST_NUMBERS // dimension, samples=samples)
    at_least(0, "cantor", seed=seed)
    at_least(0, "cantor", 100, fine=fine)
    generator = torch.Generator().manual_seed(seed)
    count = samples + TEST
    share = torch.arange(1.0, depth + 1) ** fine
    leaves = torch.rand(count, depth, generator=generator) < 1 - 2 ** -(share / share.sum())
    left = torch.where(leaves.any(1), leaves.int().argmax(1), depth)  # the level, from 0
    digits_NDL = torch.randint(3, (count, dimension, DIGITS), generator=generator)
    inside_NDL = 2 * torch.randint(2, (count, dimension, depth), generator=generator)
    level = torch.arange(depth)
    before = (level < left[:, None])[:, None]
    digits_NDL[..., :depth] = torch.where(before, inside_NDL, digits_NDL[..., :depth])
    digits_NDL[..., :depth].masked_fill_((level == left[:, None])[:, None], 1)
    pixels = (digits_NDL * 3 ** torch.arange(DIGITS - 1, -1, -1)).sum(2).to(torch.uint8)
    images = Images(pixels[:, None, :, None], (left == depth).long())
    place = torch.arange(count)
    train, test = images.subset(place[:samples]), images.subset(place[samples:])
    return Parts(train, None, test, ("outside", "inside"))
