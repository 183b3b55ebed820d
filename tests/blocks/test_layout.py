"""Which feature maps have their channels last: the network shows it, whatever its shapes."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, cut, heads, rules
from layerwise.blocks import ChannelsLastShape
from layerwise.blocks.layout import laid_out


class ChannelsLast(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.permute(0, 2, 3, 1)


class Merge(nn.Module):
    """Convolution of maps with channels last, (B, H, W, C) -> (B, H / 2, W / 2, D)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, out, 2, 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.reduce(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Mean(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean((1, 2))


def layouts(blocks: Blocks) -> list[bool]:
    assert blocks.shapes is not None
    return [isinstance(shape, ChannelsLastShape) for shape in blocks.shapes]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "shape", [(8, 8, 8), (8, 8, 12), (12, 8, 8), (8, 12, 8), (4, 8, 16), (16, 8, 4)]
)
def test_shapes_that_could_be_either(shape: tuple[int, int, int], last: bool) -> None:
    channels, height, width = (shape[2], *shape[:2]) if last else shape
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
    more = [ChannelsLast(), nn.Linear(channels, channels)]
    layers += more if last else [nn.Conv2d(channels, channels, 1)]
    x = torch.randn(2, 3, height, width)
    for blocks in (cut(nn.Sequential(*layers), blocks="all", example=x), Blocks(layers, example=x)):
        assert blocks.shapes[-1] == shape
        assert layouts(blocks)[-1] is last
    assert layouts(blocks)[0] is False


@pytest.mark.parametrize("last", [False, True])
def test_a_network_for_one_size(last: bool) -> None:
    """The linear layer takes 8x12 positions only, as position embeddings do: the ratio decides."""
    shape = (8, 12, 16) if last else (16, 8, 12)
    layers = [nn.Flatten(), nn.Linear(3 * 8 * 12, 16 * 8 * 12), nn.Unflatten(1, shape)]
    blocks = Blocks(layers, example=torch.randn(2, 3, 8, 12))
    assert layouts(blocks) == [False, False, last]


def test_images_with_channels_last() -> None:
    """The height is then the first axis of the input."""
    network = nn.Sequential(Merge(3, 8), Merge(8, 4))
    blocks = cut(network, at=["1"], example=torch.randn(2, 16, 8, 3))
    assert blocks.shapes == ((8, 4, 8), (4, 2, 4))
    assert layouts(blocks) == [True, True]


def test_videos() -> None:
    """(C, F, H, W) of eight frames at 8x8, with eight channels; and (F, H, W, C)."""
    first = [nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 1)]

    class Last(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.permute(0, 2, 3, 4, 1)

    blocks = Blocks([*first, Last()], example=torch.randn(2, 3, 8, 8, 8))
    assert layouts(blocks) == [False, False, True]


def test_shapes_of_square_images_need_no_run() -> None:
    def run(axis: int) -> list[tuple[int, ...]]:
        raise AssertionError

    assert laid_out((3, 8, 8), [(16, 8, 8), (8, 4, 4), (5,)], run) == ((16, 8, 8), (8, 4, 4), (5,))


def test_the_network_is_left_as_it_is() -> None:
    """Statistics, modes and random numbers, after a run that fails in the middle as well."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 96, 5)
    )
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = torch.get_rng_state()
    cut(network, blocks=2, example=torch.randn(2, 3, 8, 12, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def swin() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.SwinTransformer([2, 2], 16, [1, 1], [2, 2], [4, 4], num_classes=5)


def test_heads_average_the_positions_of_rectangular_maps() -> None:
    """Swin on 32x48: (16, 24, 16) and (8, 12, 32). A head's vector has the mean over positions."""
    x = torch.randn(3, 3, 32, 48)
    rule = rules.DGL(cut(swin(), at=["features.2"], example=x), head=heads.Linear(pool=1))
    assert rule.blocks.shapes == ((16, 24, 16), (5,))
    assert layouts(rule.blocks) == [True, False]
    (h, _), head = rule.activities(x), rule.objectives[0].head
    linear = head[-1]
    torch.testing.assert_close(head(h), F.linear(h.mean((1, 2)), linear.weight, linear.bias))


def test_pooled_heads_of_later_layers_on_rectangular_maps() -> None:
    """AugLocal(pool=2): 16x24 positions become 8x12 before the head's layers read them."""
    x = torch.randn(2, 3, 32, 48)
    rule = rules.AugLocal(cut(swin(), at=["features.1", "features.2"], example=x), depth=1, pool=2)
    head, h = rule.objectives[0].head, torch.randn(2, 16, 24, 16)
    pooled = h
    for module in head[:3]:
        pooled = module(pooled)
    torch.testing.assert_close(pooled, h.unflatten(1, (8, 2)).unflatten(3, (12, 2)).mean((2, 4)))
    assert rule.exits(x)[0].shape == (2, 5)


def test_synthetic_gradients_of_every_position() -> None:
    """Channels last: linear layers, one position at a time, whatever the ratio of the maps."""
    synthesizer = heads.Synthesizer(layers=1)(ChannelsLastShape((4, 6, 8)), None)
    assert [m.in_features for m in synthesizer.modules() if isinstance(m, nn.Linear)] == [8, 8]
