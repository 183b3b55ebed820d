"""Class scores averaged over views of the test images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerwise import Blocks, InputError
from layerwise.analysis.exits import averaged_exits
from layerwise.rules import Backprop


class Corner(nn.Module):
    """Scores that name one pixel: the first class the top left one, the second the bottom right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0, 0, 0], x[:, 0, -1, -1]], 1)


def rule() -> Backprop:
    return Backprop(Blocks([Corner()]))


def test_views_have_the_papers_weights() -> None:
    """By hand: the image 0..8 row by row. Its corners are 0 and 8, mirrored 2 and 6. Moved down and
    right by a pixel, the top left pixel is the reflected 4 and the bottom right one 4; moved up and
    left alike."""
    x = torch.arange(9.0).view(1, 1, 3, 3)
    mirrored = torch.tensor([[1.0, 7.0]])
    assert torch.equal(averaged_exits(rule(), x, "none")[0], torch.tensor([[0.0, 8.0]]))
    assert torch.equal(averaged_exits(rule(), x, "mirror")[0], mirrored)
    assert torch.equal(averaged_exits(rule(), x, "shift")[0], 0.5 * mirrored + 0.5 * 4)


def test_only_images_have_views() -> None:
    with pytest.raises(InputError, match="--test_time mirror: it is for images"):
        averaged_exits(rule(), torch.randn(2, 5), "mirror")
    with pytest.raises(InputError, match="images of 1x64 cannot be moved by a pixel"):
        averaged_exits(rule(), torch.randn(2, 1, 1, 64), "shift")
