"""Points of a Cantor set: the label is membership, and the levels have their probabilities."""

from __future__ import annotations

import pytest
import torch

from layerwise.data.sources.cantor import TEST, cantor


@pytest.mark.parametrize("fine", [0.0, 2.0])
def test_cantor(fine: float) -> None:
    parts = cantor(dimension=3, depth=4, fine=fine, samples=40_000)
    images, inside = parts.train.images, parts.train.labels == 1
    digits = images[:, 0, :, :].long() // torch.tensor([81, 27, 9, 3]) % 3  # N, D, levels
    assert images.max() <= 242
    assert len(parts.test) == TEST
    assert torch.equal(inside, (digits != 1).all(2).all(1))
    assert inside.double().mean().sub(0.5).abs() < 0.01
    # P(in the set down to level j) = 2^-(w_1 + ... + w_j); a point leaves with all digits at once.
    w = torch.arange(1.0, 5) ** fine
    left = (digits == 1).all(1).cummax(1).values
    wanted = 1 - 2 ** -(w.cumsum(0) / w.sum())
    assert left.double().mean(0).sub(wanted).abs()[:3].max() < 0.01
