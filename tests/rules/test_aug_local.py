"""Heads of later layers: which, how they are made to fit, and what they do."""

from __future__ import annotations

import copy
import itertools

import networks
import pytest
import torch
from networks import NETWORKS, assert_close, grads
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, cut, models, rules
from layerwise.blocks.copies import fresh
from layerwise.blocks.parts import layers
from layerwise.rules.aug_local import choose, depths


def test_depths() -> None:
    """ResNet-32 in 16 modules: from 5 to (1 - 1/2) 5 + 1/2 = 3 over 14 steps of 1/7 each.

    5 - k/7: 5, 4.86, ..., 4.57 at k = 3, 4.43 at k = 4, ..., 3.57 at k = 10, 3.43 at k = 11, ... 3.
    """
    assert depths(16, 5, 0.5) == [5] * 4 + [4] * 7 + [3] * 4
    assert depths(16, 5, 0.0) == [5] * 15
    assert depths(5, 4, 1.0) == [4, 3, 2, 1]
    assert depths(16, 1, 0.5) == [1] * 15
    assert depths(2, 3, 0.5) == [3]
    assert depths(1, 3, 0.5) == []


def test_choice() -> None:
    """Of 16 layers, uniformly to the last; all that are left where these are no more."""
    assert choose(0, 16, 3) == [5, 10, 15]
    assert choose(0, 16, 4) == [4, 8, 11, 15]  # 3.75, 7.5, 11.25, 15; halves to even
    assert choose(9, 16, 2) == [12, 15]
    assert choose(12, 16, 3) == choose(12, 16, 9) == [13, 14, 15]
    assert choose(15, 16, 2) == []


def test_layers_of_blocks() -> None:
    net = models.vgg8b((3, 16, 16), 10, width=1 / 16)
    kinds = [[type(m).__name__ for m in layer] for layer in layers(net)]
    conv = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds[:2] == [conv, [*conv, "MaxPool2d"]]
    assert kinds[-2:] == [["Flatten", "Linear", "BatchNorm1d", "ReLU"], ["Linear"]]
    resnet = [[type(m).__name__ for m in layer] for layer in layers(models.resnet20())]
    assert resnet[0] == conv
    assert resnet[-2:] == [["ResidualBlock", "MeanPool2d"], ["Flatten", "Linear"]]
    assert [len(layers(m)) for m in (nn.ReLU(), nn.Sequential(), nn.Linear(2, 2))] == [1, 1, 1]


def _shapes(head: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Of what every layer of a head gives."""
    h, found = torch.zeros(2, *shape), []
    for module in head:
        h = module(h)
        found.append(tuple(h.shape[1:]))
    return found


def test_convolutions_are_made_to_fit() -> None:
    """VGG8b, 32x32, channels 16, 32 | 32, 64 | 64 | 64, then 1024 units: of the layers 1 to 6 after
    the first the head takes 2, 4 and 6. The maps are halved at most once before each."""
    net = models.vgg8b((3, 32, 32), 10, width=1 / 8)
    blocks = cut(net, blocks="all", example=torch.zeros(2, 3, 32, 32))
    assert len(blocks) == 8
    rule = rules.AugLocal(blocks, depth=3, decay=0)
    head = rule.objectives[0].head
    assert _shapes(head, (16, 32, 32)) == [(32, 16, 16), (64, 4, 4), (1024,), (10,)]
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(16, 32), (32, 64)]
    assert [m.in_features for m in head.modules() if isinstance(m, nn.Linear)] == [256, 1024]


def test_residual_blocks_are_made_to_fit() -> None:
    """ResNet-20, depth 1: the last residual block, 64 channels at 8x8, for the stem's 16 at 32x32:
    the block takes 16 channels and halves the maps, its pooling, linear."""
    blocks = cut(models.resnet20(), blocks="all", example=torch.zeros(2, 3, 32, 32))
    rule = rules.AugLocal(blocks, depth=1)
    head = rule.objectives[0].head
    assert [type(m).__name__ for m in head[0]] == ["ResidualBlock", "MeanPool2d"]
    assert _shapes(head[0], (16, 32, 32)) == [(64, 16, 16), (64, 1, 1)]
    block = head[0][0]
    assert (block.conv1.in_channels, block.stride, block.new_channels) == (16, 2, 48)
    assert head[-1].in_features == 64
    # Nothing but the classifier follows the last residual block, with its pooling.
    assert [type(m).__name__ for m in rule.objectives[9].head] == ["Flatten", "Linear"]


class Mean(nn.Module):
    """Of all positions, (B, H, W, C) -> (B, C)."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean((1, 2))


def test_channels_that_come_last() -> None:
    """(H, W, C): 8x8 of 4, then 4x4 of 6 in the network; halved once, 4 brought to 6."""

    class Position(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.mix = nn.Linear(channels, channels)

        def forward(self, h: Tensor) -> Tensor:
            return h + self.mix(h)

    class Merge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduce = nn.Linear(16, 6)

        def forward(self, h: Tensor) -> Tensor:
            return self.reduce(torch.cat([h[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1))

    parts = [Position(4), Merge(), Position(6), nn.Sequential(Mean(), nn.Linear(6, 2))]
    rule = rules.AugLocal(Blocks(parts, example=torch.zeros(2, 8, 8, 4)), depth=1)
    layer = rule.objectives[0].head[0]
    shapes = [(4, 8, 8), (4, 4, 4), (6, 4, 4), (6, 4, 4), (4, 4, 6), (4, 4, 6)]
    assert _shapes(layer, (8, 8, 4)) == shapes
    assert rule.exits(torch.zeros(2, 8, 8, 4))[0].shape == (2, 2)


def test_pooled_maps() -> None:
    """ResNet-20, pool 2: the stem's maps are averaged to 16x16; the last residual block, at 8x8 in
    the network, reads 4x4, so halves them once, to 8x8. From the last stage it reads its 4x4."""
    blocks = cut(models.resnet20(), blocks="all", example=torch.zeros(2, 3, 32, 32))
    rule = rules.AugLocal(blocks, depth=1, pool=2)
    head = rule.objectives[0].head
    assert _shapes(head, (16, 32, 32))[:2] == [(16, 16, 16), (64, 1, 1)]
    assert _shapes(head[1], (16, 16, 16)) == [(64, 8, 8), (64, 1, 1)]
    h = torch.randn(2, 16, 32, 32)
    assert torch.equal(head[0](h), F.adaptive_avg_pool2d(h, 16))
    torch.testing.assert_close(head(h), head[1:](F.avg_pool2d(h, 2)))
    last = rule.objectives[8].head
    assert _shapes(last, (64, 8, 8))[0] == (64, 4, 4)
    assert last[1][0].stride == 1


def test_pooled_maps_of_channels_that_come_last() -> None:
    """6x6 positions are averaged to 2x2, channel by channel."""
    parts = [
        nn.Linear(3, 2),
        nn.Linear(2, 2),
        nn.Linear(2, 2),
        nn.Sequential(Mean(), nn.Linear(2, 4)),
    ]
    rule = rules.AugLocal(Blocks(parts, example=torch.zeros(2, 6, 6, 3)), depth=1, pool=3)
    head = rule.objectives[0].head
    h = torch.randn(2, 6, 6, 2)
    pooled = h.unflatten(2, (2, 3)).unflatten(1, (2, 3)).mean((2, 4))
    torch.testing.assert_close(head[:3](h), pooled)


def test_maps_too_small_for_a_layer() -> None:
    """The last layer's MaxPool2d cannot halve maps of 1x1."""
    net = models.vgg8b((3, 16, 16), 10, width=1 / 16)
    blocks = cut(net, blocks="all", example=torch.zeros(2, 3, 16, 16))
    rules.AugLocal(blocks, pool=1)
    with pytest.raises(
        ValueError, match=r"AugLocal\(pool=16\): a layer of a head cannot take maps"
    ):
        rules.AugLocal(blocks, pool=16)


def test_transformer_layers_fit() -> None:
    case = networks.transformer()
    rule = rules.AugLocal(case.blocks, depth=2, decay=0)
    first, second = rule.objectives[0].head[:2]
    assert [type(m).__name__ for m in (*first, *second)] == ["TransformerEncoderLayer"] * 2
    assert not torch.equal(first[0].linear1.weight, case.blocks[1][0].linear1.weight)


def test_vectors_are_made_to_fit() -> None:
    """Widths 4, 5, 6, 7; the first head has layers 2 and 3 of 0 to 3."""
    widths = (3, 4, 5, 6, 7)
    parts = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    blocks = Blocks([*parts, nn.Linear(7, 2)], example=torch.zeros(2, 3))
    rule = rules.AugLocal(blocks, depth=2, decay=0)
    linears = [m for m in rule.objectives[0].head.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(4, 6), (6, 7), (7, 2)]


def test_weights_are_fresh_and_the_networks_untouched() -> None:
    torch.manual_seed(3)
    layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.MultiheadAttention(4, 2))
    layer.requires_grad_(False)
    before = copy.deepcopy(layer.state_dict())
    made = fresh(layer)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])
    moved = {n for n, p in made.named_parameters() if not torch.equal(p, before[n])}
    assert {"0.weight", "0.bias", "2.in_proj_weight"} <= moved
    assert all(p.requires_grad for p in made.parameters())
    case = networks.cnn()
    rule = rules.AugLocal(case.blocks)
    ids = {id(p) for p in case.model.parameters()}
    assert not ids & {id(p) for p in rule.objectives.parameters()}


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_dgl_with_these_heads(network: str) -> None:
    case = NETWORKS[network](torch.float64)
    rule = rules.AugLocal(case.blocks, depth=3)
    rule.backward(case.x, case.y)
    got = grads(rule)
    rule.zero_grad()
    h: Tensor = case.x
    for i, block in enumerate(case.blocks):
        h = scores = block(h.detach())
        for module in rule.objectives[i].head if i < len(case.blocks) - 1 else ():
            scores = module(scores)
        F.cross_entropy(scores, case.y).backward()
    assert_close(got, grads(rule))


def test_tokens_with_labels_of_their_own() -> None:
    parts = [nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 5)]
    x = torch.randint(0, 7, (2, 3))
    rule = rules.AugLocal(Blocks(parts, example=x))
    rule.backward(x, torch.randint(0, 5, (2, 3)))
    assert rule.exits(x)[0].shape == (2, 3, 5)


def test_bad_input() -> None:
    for options in ({"depth": 0}, {"decay": 1.5}, {"pool": 0}):
        with pytest.raises(ValueError, match="give a depth and a pool of at least 1 and a decay"):
            rules.AugLocal(networks.mlp().blocks, **options)
    with pytest.raises(ValueError, match="a rule takes Blocks"):
        rules.AugLocal(networks.mlp().model)
    with pytest.raises(ValueError, match="give an example"):
        rules.AugLocal(Blocks([nn.Linear(3, 3), nn.Linear(3, 3)]))
