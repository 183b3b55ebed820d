"""What a hyperplane separates, and what it cannot."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import Tensor, nn

from layerwise import Blocks
from layerwise.analysis import linear_separability
from layerwise.data import Images, Loader


def _loader(pixels: list[list[int]], labels: list[int], batch: int = 3) -> Loader:
    images = torch.tensor(pixels, dtype=torch.uint8)[:, None, :, None]  # N 1 pixels 1
    return Loader(Images(images, torch.tensor(labels)), batch, train=False)


CORNERS = [[0, 0], [0, 255], [255, 0], [255, 255]]


class Product(nn.Module):
    """Adds the product of the two features."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.cat([h, h.prod(1, keepdim=True)], 1)


class Erase(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h * 0


def test_xor_is_not_separable_and_with_the_product_it_is():
    blocks = Blocks([nn.Flatten(), Product(), Erase()])
    plain, product, erased = linear_separability(blocks, _loader(CORNERS, [0, 1, 1, 0]))
    assert 0.5 <= plain <= 0.75  # three of the four at best
    assert product == 1
    assert erased == 0.5


def test_and_is_separable():
    assert linear_separability(Blocks([nn.Flatten()]), _loader(CORNERS, [0, 0, 0, 1])) == (1.0,)


def test_three_classes_at_the_corners_of_a_triangle_with_a_narrow_gap():
    generator = torch.Generator().manual_seed(0)
    pixels, labels = [], []
    for _ in range(60):
        a, b = torch.randint(256, (2,), generator=generator).tolist()
        if abs(a - b) > 6 and abs(a - 128) > 6:
            pixels.append([a, b])
            labels.append(0 if a < 128 else 1 + (a > b))
    (share,) = linear_separability(Blocks([nn.Flatten()]), _loader(pixels, labels))
    assert set(labels) == {0, 1, 2}
    assert share == 1


def test_the_network_does_not_notice():
    case = networks.cnn(dropout=0.3)
    modes = [m.training for m in case.blocks.modules()]
    state = {k: v.clone() for k, v in case.blocks.state_dict().items()}
    pixels = torch.randint(256, (9, 8, 8, 2), dtype=torch.uint8)
    random = torch.get_rng_state()
    loader = Loader(Images(pixels, torch.arange(9) % 3), 4, train=False)
    found = linear_separability(case.blocks, loader, iterations=20)
    assert len(found) == 4
    assert all(1 / 3 <= share <= 1 for share in found)
    assert [m.training for m in case.blocks.modules()] == modes
    networks.assert_same(dict(case.blocks.state_dict()), state)
    assert torch.equal(torch.get_rng_state(), random)


def test_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_separability(
            Blocks([nn.Flatten(), nn.Linear(2, 8)]), _loader(CORNERS, [0, 0, 0, 1])
        )
    assert found == pytest.approx((1.0, 1.0))
