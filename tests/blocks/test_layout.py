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


@pytest.mark.parametrize("channels", [2, 5, 8])
def test_images_with_other_channels_last(channels: int) -> None:
    """Only the height and width of an image can be doubled."""
    layers = [Merge(channels, 8), Merge(8, 4)]
    for height, width in ((8, 8), (8, 16)):
        blocks = Blocks(layers, example=torch.randn(2, height, width, channels))
        assert layouts(blocks) == [True, True]
        assert isinstance(blocks.input_shape, ChannelsLastShape)


@pytest.mark.parametrize("shape", [(8, 50, 3), (9, 128, 3), (3, 8, 8)])
def test_images_with_channels_first_that_look_otherwise(shape: tuple[int, int, int]) -> None:
    layers = [nn.Conv2d(shape[0], 16, 3, padding=1), nn.Conv2d(16, shape[1], 1)]
    blocks = Blocks(layers, example=torch.zeros(2, *shape))
    assert layouts(blocks) == [False, False]
    assert not isinstance(blocks.input_shape, ChannelsLastShape)


@pytest.mark.parametrize("size", [(4, 1), 2, (1, None), (None, 1)])
@pytest.mark.parametrize("shape", [(3, 8, 64), (3, 64, 8), (3, 16, 16)])
def test_pooling_to_a_fixed_size(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    """What does not grow has the layout of the output before."""
    pool = nn.AdaptiveAvgPool2d(size)
    first = Blocks([nn.Conv2d(3, 8, 1), pool], example=torch.zeros(2, *shape))
    assert layouts(first) == [False, False]

    class Last(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return pool(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    layers = [nn.Conv2d(3, 8, 1), ChannelsLast(), Last()]
    last = Blocks(layers, example=torch.zeros(2, *shape))
    assert layouts(last)[1] is True
    if size in ((4, 1), 2):
        assert layouts(last)[2] is True


def test_height_and_width_in_turn() -> None:
    """(C, W, H), and (W, H, C)."""

    class Turned(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return h.transpose(2, 3)

    layers = [Turned(), nn.Conv2d(1, 16, 3, padding=1), ChannelsLast()]
    for height, width in ((16, 8), (8, 8)):
        blocks = Blocks(layers, example=torch.zeros(2, 1, height, width))
        assert layouts(blocks) == [False, False, True]


def test_an_image_beside_a_condition() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, step: Tensor, sample: Tensor) -> Tensor:
            return self.second(self.first(sample) * step.view(-1, 1, 1, 1))

    example = {"step": torch.ones(2), "sample": torch.randn(2, 3, 32, 128)}
    blocks = cut(Conditioned(), at=["second"], example=example)
    assert blocks.shapes == ((16, 8, 32), (16, 8, 32))
    assert layouts(blocks) == [False, False]


def test_what_a_block_keeps_is_that_of_its_own_image() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []
            self.register_buffer("runs", torch.zeros(()))

        def forward(self, h: Tensor) -> Tensor:
            self.sizes = [*h.shape[2:]]
            self.runs += 1
            return h

    keeps = Keeps()
    Blocks([keeps, nn.Conv2d(3, 8, 1)], example=torch.zeros(2, 3, 8, 16))
    assert keeps.sizes == [8, 16]
    assert keeps.runs.item() == 1


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

    shapes = ((16, 8, 8), (8, 4, 4), (5,))
    assert laid_out((3, 8, 8), shapes, run) == ((3, 8, 8), *shapes)


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
