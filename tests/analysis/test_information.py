"""What a block tells of the image and of the label, where both are known."""

from __future__ import annotations

import math

import networks
import pytest
import torch
from torch import Tensor, nn

from layerwise import Blocks, InputError, heads
from layerwise.analysis import information
from layerwise.data import Images, Loader

CLASSES = 4


def _loaders() -> tuple[Loader, Loader]:
    """Images of 2 x 2 pixels, of which the label's is white."""
    labels = torch.arange(200) % CLASSES
    pixels = (255 * torch.eye(CLASSES, dtype=torch.uint8))[labels].view(-1, 2, 2, 1)
    images = Images(pixels, labels)
    return Loader(images, 20, train=True), Loader(images, 50, train=False)


class Erase(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h * 0


def test_all_and_nothing():
    """One-hot, h tells the label, log 4 nats, and the image, which costs nothing then. A constant
    tells neither: the best constant image is 1/4 everywhere, and costs the entropy of a pixel,
    -(1/4 log 1/4 + 3/4 log 3/4) = 0.5623."""
    blocks = Blocks([nn.Flatten(), Erase()])
    all_, nothing = information(blocks, *_loaders(), epochs=20, lr=0.1)
    assert all_.label == pytest.approx(math.log(CLASSES), abs=0.02)
    assert all_.reconstruction == pytest.approx(0, abs=0.02)
    assert nothing.label == pytest.approx(0, abs=0.01)
    assert nothing.reconstruction == pytest.approx(0.5623, abs=0.01)
    assert nothing.label <= 1e-6  # by Gibbs' inequality, on as many of each class


def test_the_network_does_not_notice_and_it_repeats():
    case = networks.cnn(dropout=0.3)
    pixels = torch.randint(256, (12, 8, 8, 2), dtype=torch.uint8)
    images = Images(pixels, torch.arange(12) % 3)
    loaders = Loader(images, 6, train=True), Loader(images, 5, train=False)
    modes = [m.training for m in case.blocks.modules()]
    state = {k: v.clone() for k, v in case.blocks.state_dict().items()}
    random = torch.get_rng_state()
    found = information(case.blocks, *loaders, epochs=1, seed=1)
    assert [m.training for m in case.blocks.modules()] == modes
    networks.assert_same(dict(case.blocks.state_dict()), state)
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(7)
    assert found == information(case.blocks, *loaders, epochs=1, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = information(case.blocks, *loaders, epochs=1, seed=1)
    assert rough[0].reconstruction == pytest.approx(found[0].reconstruction, abs=0.05)


def test_what_cannot_be_read():
    with pytest.raises(InputError, match=r"information\(epochs=0\): give 1 or more"):
        information(Blocks([nn.Flatten()]), *_loaders(), epochs=0)
    with pytest.raises(InputError, match=r"heads.Same"):
        information(Blocks([nn.Flatten()]), *_loaders(), decoder=heads.Same(), epochs=1)
    with pytest.raises(InputError, match=r"information\(decoder\): it gives images of \(1, 1\)"):
        information(Blocks([nn.AvgPool2d(2)]), *_loaders(), decoder=heads.Same(), epochs=1)
