"""Every level of the toy distribution determines the one before."""

from __future__ import annotations

import pytest
import torch

from layerwise import data
from layerwise.data.sources.digits import digits as source
from layerwise.data.sources.hierarchical import hierarchical, random_patches, refine


def test_refine_by_hand() -> None:
    """Class 0 is [[0, 1], [2, 3]], class 1 is [[4, 5], [6, 7]]; one patch each, so nothing is
    drawn."""
    patches = torch.arange(8).view(2, 1, 2, 2)
    found = refine(torch.tensor([[[0, 1], [1, 0]]]), patches, torch.Generator())
    assert found.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [4, 5, 0, 1], [6, 7, 2, 3]]]


def test_patches_are_different_and_drawn_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = random_patches(4, 2, 4, 2, generator)  # all 16 that there are
    assert len({tuple(p.flatten().tolist()) for p in patches.flatten(0, 1)}) == 16
    drawn = refine(torch.zeros(1, 64, 64, dtype=torch.long), patches, generator)
    tiles = drawn.view(64, 2, 64, 2).permute(0, 2, 1, 3).reshape(-1, 4)
    counts = [(tiles == p.flatten()).all(1).sum().item() for p in patches[0]]
    assert sum(counts) == 64 * 64
    assert all(900 < n < 1150 for n in counts)
    with pytest.raises(ValueError, match="need 20 patches, but there are 16"):
        random_patches(4, 2, 5, 2, generator)


def test_the_digits_can_be_read_back() -> None:
    """With the patches at hand: the same generator draws them again."""
    whole = hierarchical(seed=3).train
    generator = torch.Generator().manual_seed(3)
    first = random_patches(2, 4, 3, 2, generator)
    top = (source().train.images[..., 0] >= 128).long()
    middle = refine(top, first, generator)
    second = random_patches(4, 2, 3, 2, generator)

    def read(maps: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        n, h, w = maps.shape
        tiles = maps.view(n, h // 2, 2, w // 2, 2).permute(0, 1, 3, 2, 4)
        found = torch.full((n, h // 2, w // 2), -1)
        for c, of_class in enumerate(patches):
            for patch in of_class:
                found[(tiles == patch).flatten(3).all(3)] = c
        return found

    pixels = (whole.images[..., 0] // 255).long()
    assert torch.equal(read(pixels, second), middle)
    assert torch.equal(read(middle, first), top)
    assert torch.equal(whole.labels, source().train.labels)


def test_by_name() -> None:
    splits = data.load("hierarchical")
    assert splits.shape == (1, 32, 32)
    assert splits.num_classes == 10
