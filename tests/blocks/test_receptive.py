"""Receptive fields against hand formulas, the literature, gradients, and closed-form arithmetic."""

from __future__ import annotations

import random

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise import Blocks, InputError, ReceptiveField, cut, models, receptive_fields


def field(block: nn.Module, shape=(2, 33, 40)) -> ReceptiveField | None:
    return receptive_fields(Blocks([block], example=torch.randn(1, *shape)))[0]


def square(size: int, stride: int, offset: float) -> ReceptiveField:
    return ReceptiveField((size, size), (stride, stride), (offset, offset))


# Position o of a layer reads dilation * (kernel - 1) + 1 pixels, from stride * o - padding on; the
# centre of position 0's region is dilation * (kernel - 1) / 2 - padding.
LAYERS = [
    (nn.Conv2d(2, 3, 1), square(1, 1, 0)),
    (nn.Conv2d(2, 3, 3, padding=1), square(3, 1, 0)),
    (nn.Conv2d(2, 3, 3), square(3, 1, 1)),
    (nn.Conv2d(2, 3, 4, stride=2, padding=1), square(4, 2, 0.5)),
    (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 3, 2)), square(2, 1, 0.5)),
    (nn.Conv2d(2, 3, 3, padding=5), square(3, 1, -4)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), square(3, 1, 0)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), square(3, 1, 0)),
    (nn.Conv2d(2, 3, 3, dilation=4, padding=4), square(9, 1, 0)),
    # It reads beyond the map on both sides, as in DeepLab, and only one pixel of the map itself.
    (nn.Conv2d(2, 3, 3, dilation=36, padding=36), square(73, 1, 0)),
    (nn.Conv2d(2, 3, 3, dilation=72, padding=72), square(145, 1, 0)),
    # It reads 2 of every 5 rows, or 1 of every 3.
    (nn.Conv2d(2, 3, 2, stride=5), square(2, 5, 0.5)),
    (nn.Conv2d(2, 3, 1, stride=3), square(1, 3, 0)),
    (nn.Conv2d(2, 3, (5, 2), (1, 3), (2, 0)), ReceptiveField((5, 2), (1, 3), (0.0, 0.5))),
    (nn.Conv2d(2, 2, 3, groups=2, padding=1), square(3, 1, 0)),
    (nn.MaxPool2d(2), square(2, 2, 0.5)),
    (nn.MaxPool2d(3, 2, padding=1), square(3, 2, 0)),
    (nn.MaxPool2d(3, 2, ceil_mode=True), square(3, 2, 1)),
    (nn.AvgPool2d(8), square(8, 8, 3.5)),
    (nn.Sequential(nn.BatchNorm2d(2), nn.GELU(), nn.Dropout(0.5)), square(1, 1, 0)),
    (nn.Identity(), square(1, 1, 0)),
]


@pytest.mark.parametrize(("layer", "wanted"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
def test_one_layer(layer, wanted):
    assert field(layer) == wanted


def test_blocks_compose():
    """By hand: a 5x5 convolution adds 4 strides, a 2x2 pooling adds one."""
    net = models.basic_cnn(channels=2, hidden=4)
    blocks = cut(net, at=["conv2", "conv3", "classifier"], example=torch.randn(2, 3, 32, 32))
    # 1+4+1; 6+2*4+2; 16+4*4+4, which is more than the image has
    assert receptive_fields(blocks) == (
        square(6, 2, 0.5),
        square(16, 4, 1.5),
        square(36, 8, 3.5),
        None,
    )


def test_vgg16():
    """VGG16's convolutions (Simonyan & Zisserman): the field is 212 at the last pooling (Araujo et
    al. 2019, table), so 212 - 16 at the last convolution; also on images of 32 pixels."""
    net = models.vgg16(width=1 / 32)
    fields = receptive_fields(cut(net, blocks="all", example=torch.randn(2, 3, 32, 32)))
    assert fields[-2:] == (square(212, 32, 15.5), None)
    # 13 convolutions add 2 * (2*1 + 2*2 + 3*4 + 3*8 + 3*16), the poolings 1 + 2 + 4 + 8 and 16.
    assert 1 + 2 * (2 + 4 + 12 + 24 + 48) + 15 == 212 - 16
    conv13 = nn.Sequential(*[m for part in list(net)[:13] for m in part][:-1])
    assert field(conv13, (3, 32, 32)) == square(196, 16, 7.5)


@pytest.mark.slow
def test_alexnet():
    """alexnet_v2 in the table of Araujo et al. 2019: size 195, stride 32. At 224 pixels the
    adaptive pooling after it leaves the 6x6 maps unchanged."""
    net = torchvision.models.alexnet()
    blocks = cut(
        net, at=["features.3", "avgpool", "classifier"], example=torch.randn(2, 3, 224, 224)
    )
    assert receptive_fields(blocks) == (
        square(19, 8, 7),  # 11, then a pooling over 3 positions with stride 4
        square(195, 32, 31),
        square(195, 32, 31),
        None,
    )


STAGES = ["layer1", "layer2", "layer3", "layer4", "avgpool"]


@pytest.mark.slow
def test_resnet18():
    """Two 3x3 convolutions per block: the stem has 11, stages add 4 * 2*4, 2*4 + 3 * 2*8, ...."""
    blocks = cut(torchvision.models.resnet18(), at=STAGES, example=torch.randn(2, 3, 64, 64))
    sizes = [(11, 4), (43, 4), (99, 8), (211, 16), (435, 32)]
    assert receptive_fields(blocks) == (*(square(*size, 0) for size in sizes), None)


@pytest.mark.slow
def test_resnet50():
    """torchvision's has one 3x3 convolution per block, which has the stride in the first block of
    stages 2 to 4."""
    blocks = cut(torchvision.models.resnet50(), at=STAGES, example=torch.randn(2, 3, 64, 64))
    # The stem has 11; the stages add 3 * 2*4; 2*4 + 3 * 2*8; 2*8 + 5 * 2*16; 2*16 + 2 * 2*32.
    sizes = [(11, 4), (35, 4), (91, 8), (267, 16), (427, 32)]
    assert receptive_fields(blocks) == (*(square(*size, 0) for size in sizes), None)


class Residual(nn.Module):
    """x + f(x); if f has a stride, the shortcut is subsampled."""

    def __init__(self, body: nn.Module, stride: int = 1):
        super().__init__()
        self.body, self.stride = body, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x[..., :: self.stride, :: self.stride])


def test_resnet50_of_the_table():
    """resnet_v1_50 of Araujo et al. 2019: 483. The last unit of each of stages 1 to 3 has the
    stride."""

    def stage(units: int, last: int) -> nn.Sequential:
        strides = [1] * (units - 1) + [last]
        return nn.Sequential(*[Residual(nn.Conv2d(2, 2, 3, s, 1), s) for s in strides])

    stem = nn.Sequential(nn.Conv2d(3, 2, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages = [stage(3, 2), stage(4, 2), stage(6, 2), stage(3, 1)]
    last = receptive_fields(Blocks([stem, *stages], example=torch.randn(1, 3, 64, 64)))[-1]
    assert last == square(483, 32, 0)
    whole = nn.Sequential(stem, *stages)
    assert field(whole, (3, 64, 64)) == last


def by_gradient(net: nn.Module, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The first and last row, and column, on which the output in the middle depends."""
    x = torch.randn(1, *shape, dtype=torch.float64, requires_grad=True)
    h = net.double()(x)
    (g,) = torch.autograd.grad(h[0, :, h.shape[2] // 2, h.shape[3] // 2].sum(), x)
    touched = g[0].abs().sum(0) > 0
    rows, columns = touched.any(1).nonzero(), touched.any(0).nonzero()
    return [(int(found.min()), int(found.max())) for found in (rows, columns)]


def test_branches():
    """The field is the union of the branches' fields, compared with the gradient's support; the
    network has no ReLU."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(2, 2, (1, 7), padding=(0, 3))
            self.b = nn.Sequential(nn.Conv2d(2, 2, (4, 1)), nn.Conv2d(2, 2, 3, padding=1))
            self.c = nn.AvgPool2d(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = self.a(x), self.b(x), self.c(x)
            return a[..., 3:, :] + b + F.pad(c, (0, 1))[..., 2:, :]

    shape = (2, 30, 30)
    net = nn.Sequential(Branches(), nn.AvgPool2d(3, 2))
    found = field(net, shape)
    out = net(torch.zeros(1, *shape)).shape
    for axis, (first, last) in enumerate(by_gradient(net, shape)):
        assert found.size[axis] == last - first + 1
        middle = found.stride[axis] * (out[2 + axis] // 2) + found.offset[axis]
        assert middle == (first + last) / 2


LAYER = st.tuples(
    st.sampled_from(["conv", "max", "avg"]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),  # kernel
    st.tuples(st.integers(1, 3), st.integers(1, 3)),  # stride
    st.tuples(st.integers(0, 3), st.integers(0, 3)),  # padding
    st.tuples(st.integers(1, 3), st.integers(1, 3)),  # dilation
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=st.lists(LAYER, min_size=1, max_size=4), together=st.booleans())
def test_chains_of_layers(plan, together):
    """Random chains of layers agree with closed-form arithmetic, as many blocks and as one."""
    layers: list[nn.Module] = []
    size, jump, start = [1, 1], [1, 1], [0, 0]
    for kind, kernel, stride, padding, dilation in plan:
        if kind != "conv":
            padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
        if kind == "avg":
            dilation = (1, 1)
        layer = {
            "conv": lambda k, s, p, d: nn.Conv2d(2, 2, k, s, p, d),
            "max": lambda k, s, p, d: nn.MaxPool2d(k, s, p, d),
            "avg": lambda k, s, p, d: nn.AvgPool2d(k, s, p),
        }[kind](kernel, stride, padding, dilation)
        layers.append(layer)
        for axis in (0, 1):
            size[axis] += (kernel[axis] - 1) * dilation[axis] * jump[axis]
            start[axis] -= padding[axis] * jump[axis]
            jump[axis] *= stride[axis]
    parts = [nn.Sequential(*layers)] if together else layers
    try:
        blocks = Blocks(parts, example=torch.zeros(1, 2, 96, 81))
    except InputError:
        assume(False)
    middles = [first + (n - 1) / 2 for first, n in zip(start, size, strict=True)]
    assert receptive_fields(blocks)[-1] == ReceptiveField(tuple(size), tuple(jump), tuple(middles))


class SameWithStride(nn.Module):
    """TensorFlow's "same" padding depends on the size of the maps; an odd rest goes to the end."""

    def forward(self, x: Tensor) -> Tensor:
        short = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[2:]]
        return F.max_pool2d(
            F.pad(x, (short[1] // 2, -(-short[1] // 2), short[0] // 2, -(-short[0] // 2))), 3, 2
        )


def test_padding_that_depends_on_the_size():
    # Even sizes need padding of 1, which goes to the end; odd ones need 2.
    found = field(SameWithStride(), (2, 33, 40))
    assert found == ReceptiveField((3, 3), (2, 2), (0.0, 1.0))


@pytest.mark.parametrize(
    ("side", "wanted"),
    [(4, square(3, 1, 0)), (8, square(4, 2, 0.5)), (6, None), (2, None)],
)
def test_adaptive_pooling_is_what_it_is_at_the_own_size(side, wanted):
    net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
    assert field(net, (2, side, side)) == wanted


def test_channels_last():
    """(H, W, C) maps, as in Swin, recognised by square maps."""

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).permute(0, 2, 3, 1)

    class Merge(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return torch.cat([h[:, ::2, ::2], h[:, 1::2, 1::2]], dim=3)

    mix = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5))
    back = nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 7))
    blocks = Blocks([Patches(), mix, Merge(), back], example=torch.randn(1, 3, 32, 32))
    patch, merged = square(4, 4, 1.5), square(8, 8, 3.5)
    assert receptive_fields(blocks) == (patch, patch, merged, merged)


class Attention(nn.Module):
    """Every position of the maps attends to every other."""

    def forward(self, h: Tensor) -> Tensor:
        tokens = h.flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return mixed.transpose(1, 2).unflatten(2, h.shape[2:])


class Squeeze(nn.Module):
    """Squeeze-and-excitation."""

    def forward(self, h: Tensor) -> Tensor:
        return h * h.mean((2, 3), keepdim=True).sigmoid()


class Windows(nn.Module):
    """Every position reads only its own window of 4x4."""

    def forward(self, h: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(h, 4), scale_factor=4)


class OneSize(nn.Module):
    """Adds an embedding of positions, so it takes inputs of one size."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(2, 32, 32))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.positions


@pytest.mark.parametrize(
    "block",
    [
        nn.Flatten(),
        nn.Sequential(
            nn.Flatten(), nn.Linear(2 * 32 * 32, 2 * 32 * 32), nn.Unflatten(1, (2, 32, 32))
        ),
        nn.AdaptiveAvgPool2d(1),
        nn.GroupNorm(1, 2),
        nn.Upsample(scale_factor=2),
        nn.Flatten(2),
        Attention(),
        Squeeze(),
        Windows(),
        OneSize(),
    ],
    ids=lambda block: type(block).__name__,
)
def test_none_where_no_region_moves_with_the_position(block):
    """Every block after it has no field either."""
    conv = nn.Conv2d(2, 2, 3, padding=1)
    blocks = Blocks([conv, block], example=torch.randn(1, 2, 32, 32))
    assert receptive_fields(blocks) == (square(3, 1, 0), None)
    if blocks.shapes[1] == (2, 32, 32):
        blocks = Blocks([block, conv], example=torch.randn(1, 2, 32, 32))
        assert receptive_fields(blocks) == (None, None)


def test_networks_of_tokens_and_vectors():
    for net, shape in [
        (models.vit((3, 16, 16), 3, patch=4, layers=2, width=8, heads=2), (3, 16, 16)),
        (models.mlp((1, 4, 4), 3, layers=2, width=5), (1, 4, 4)),
        (nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)), (5,)),
    ]:
        blocks = cut(net, blocks=2, example=torch.randn(2, *shape))
        assert receptive_fields(blocks) == (None, None)


def test_nothing_changes():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            random.random()  # Python's generator is not PyTorch's
            return x + torch.rand_like(x)

    net = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), Noisy(), nn.Dropout(), nn.MaxPool2d(2)
    )
    net[1].eval()
    net.to(torch.bfloat16)
    blocks = Blocks([net[:2], net[2:]], example=torch.randn(2, 2, 8, 8, dtype=torch.bfloat16))
    parameters = dict(blocks.named_parameters())
    state = {key: value.clone() for key, value in blocks.state_dict().items()}
    training = [module.training for module in blocks.modules()]
    modules = list(blocks.modules())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert receptive_fields(blocks) == (square(3, 1, 0), square(4, 2, 0.5))
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in blocks.modules()] == training
    assert list(blocks.modules()) == modules
    assert all(blocks.get_parameter(key) is parameter for key, parameter in parameters.items())
    for key, value in blocks.state_dict().items():
        assert torch.equal(value, state[key])
        assert value.dtype == state[key].dtype


@pytest.mark.parametrize("given", [Blocks([nn.Conv2d(1, 1, 3)]), nn.Conv2d(1, 1, 3)])
def test_shapes_are_needed(given):
    with pytest.raises(InputError, match=r"receptive_fields\(blocks\): got .*example=images"):
        receptive_fields(given)
