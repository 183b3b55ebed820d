"""Decoders: what they compute, how large and how costly they are, what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from layerwise import InputError, cut, heads, models
from layerwise.blocks import ChannelsLastShape
from layerwise.blocks.cost import flops
from layerwise.blocks.parts import modules_in_order
from layerwise.heads import Bilinear, Decoder, Same, Transposed
from layerwise.heads.decoder import FromPatches

IMAGE = (3, 32, 32)
ALL = [Transposed(), Bilinear(), Same()]


def _convolutions(decoder: nn.Module) -> list[tuple[type, int, int, int]]:
    return [
        (type(m), m.in_channels, m.out_channels, m.kernel_size[0])
        for m in decoder.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]


def _plain(decoder: nn.Module) -> nn.Module:
    """BatchNorm as identity; convolutions that copy; transposed ones all ones."""
    for m in decoder.eval().modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eps = 0.0
        elif isinstance(m, nn.Conv2d):
            nn.init.dirac_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.ConvTranspose2d):
            nn.init.ones_(m.weight)
    return decoder


def test_transposed_by_hand() -> None:
    """Kernel 4, stride 2, padding 1: output pixel o gets input pixel i if 2i - 1 <= o <= 2i + 2.
    With a kernel of ones, a row (a, b) becomes (a, a+b, a+b, b); then the same for the columns."""
    decoder = _plain(Transposed()((1, 2, 2), (1, 4, 4)))
    h = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert decoder(h)[0, 0].tolist() == [[1, 3, 3, 2], [4, 10, 10, 6], [4, 10, 10, 6], [3, 7, 7, 4]]


def test_bilinear_by_hand() -> None:
    """The pixel centres of the doubled row lie a quarter pixel from those of (0, 4), which gives
    0, 1, 3, 4; the ends are repeated."""
    decoder = _plain(Bilinear(channels=1)((1, 2, 2), (1, 2, 4)))
    h = torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]]])
    assert decoder(h)[0, 0].tolist() == [[0, 1, 3, 4], [0, 1, 3, 4]]


def test_same_by_hand() -> None:
    """The output is a copy of the rectified maps."""
    decoder = _plain(Same(channels=1)((1, 2, 2), (1, 8, 8)))
    h = torch.tensor([[[[0.0, -2.0], [4.0, 1.0]]]])
    assert decoder(h)[0, 0].tolist() == [[0, 0], [4, 1]]


def test_channels_halve() -> None:
    conv, up = nn.Conv2d, nn.ConvTranspose2d
    assert _convolutions(Transposed(4)((64, 4, 4), IMAGE)) == [
        (conv, 64, 32, 1), (up, 32, 16, 4), (up, 16, 8, 4), (up, 8, 4, 4), (conv, 4, 3, 1),
    ]  # fmt: skip
    # A block of few channels is never widened.
    assert _convolutions(Transposed(4)((8, 4, 4), IMAGE)) == [
        (up, 8, 8, 4), (up, 8, 8, 4), (up, 8, 4, 4), (conv, 4, 3, 1),
    ]  # fmt: skip
    assert _convolutions(Transposed(4, kernel_size=5)((8, 32, 32), IMAGE)) == [
        (conv, 8, 4, 1), (conv, 4, 3, 5),
    ]  # fmt: skip


def test_the_blocks_own_channels_halve() -> None:
    """Transposed convolutions of kernel 2 copy a pixel to a 2x2 square, by hand."""
    conv, up = nn.Conv2d, nn.ConvTranspose2d
    decoder = Transposed(channels=None, overlap=False)
    assert _convolutions(decoder((64, 8, 8), IMAGE)) == [
        (up, 64, 32, 2), (up, 32, 16, 2), (conv, 16, 3, 1),
    ]  # fmt: skip
    assert _convolutions(decoder((64, 32, 32), IMAGE)) == [(conv, 64, 3, 1)]
    one = _plain(decoder((1, 2, 2), (1, 4, 4)))
    h = torch.tensor([[[[0.0, 2.0], [4.0, 1.0]]]])
    assert one(h)[0, 0].tolist() == [[0, 0, 2, 2], [0, 0, 2, 2], [4, 4, 1, 1], [4, 4, 1, 1]]


@pytest.mark.parametrize(("decoder", "last"), [(Bilinear, 3), (Same, 1)])
def test_convolutions_at_the_blocks_resolution(
    decoder: type[Bilinear] | type[Same], last: int
) -> None:
    conv = nn.Conv2d
    assert _convolutions(decoder(layers=2, channels=4)((64, 8, 8), IMAGE)) == [
        (conv, 64, 4, 1), (conv, 4, 4, 3), (conv, 4, 4, 3), (conv, 4, 3, last),
    ]  # fmt: skip
    assert _convolutions(decoder(layers=1, channels=4, kernel_size=1)((2, 8, 8), IMAGE)) == [
        (conv, 2, 4, 1), (conv, 4, 3, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("side", "image", "doublings", "interpolated"),
    [(7, 28, 2, False), (7, 30, 2, True), (17, 32, 1, True), (32, 32, 0, False), (24, 32, 0, True),
     (40, 32, 0, True), (1, 32, 5, False)],
)  # fmt: skip
def test_as_many_doublings_as_come_nearest(
    side: int, image: int, doublings: int, interpolated: bool
) -> None:
    decoder = Transposed()((8, side, side), (3, image, image))
    kinds = [type(m) for m in decoder]
    assert kinds.count(nn.ConvTranspose2d) == doublings
    assert kinds.count(nn.Upsample) == interpolated
    assert decoder(torch.randn(2, 8, side, side)).shape == (2, 3, image, image)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 40)),
        st.tuples(st.integers(1, 18), st.integers(1, 6)),
        st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(1, 12)),
    ),
    image=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    decoder=st.sampled_from([Transposed(channels=2), Bilinear(channels=2)]),
)
def test_any_shape(shape: tuple[int, ...], image: tuple[int, int, int], decoder: Decoder) -> None:
    """Maps smaller by a factor that is not a power of two, larger than the image, or not square."""
    network = decoder(shape, image)
    out = network(torch.randn(2, *shape))
    assert out.shape == (2, *image)
    out.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_same_keeps_the_blocks_resolution() -> None:
    assert Same()((5, 7, 6), IMAGE)(torch.randn(2, 5, 7, 6)).shape == (2, 3, 7, 6)


@pytest.mark.parametrize("decoder", ALL, ids=lambda d: type(d).__name__)
def test_channels_last_networks(decoder: Decoder) -> None:
    h = torch.randn(4, 5, 8, 8)
    last, first = decoder(ChannelsLastShape((8, 8, 5)), IMAGE), decoder((5, 8, 8), IMAGE)
    last.load_state_dict(dict(zip(last.state_dict(), first.state_dict().values(), strict=True)))
    torch.testing.assert_close(last(h.permute(0, 2, 3, 1)), first(h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", [Transposed(), Bilinear()], ids=lambda d: type(d).__name__)
def test_a_vector_goes_through_one_linear_layer(decoder: Decoder) -> None:
    network = decoder((6,), (2, 3, 4))
    (linear,) = [m for m in network if isinstance(m, nn.Linear)]
    h = torch.randn(5, 6)
    assert torch.equal(network(h), F.linear(h, linear.weight, linear.bias).view(5, 2, 3, 4))


@pytest.mark.parametrize("class_tokens", [0, 1])
def test_patches_back_to_where_they_were(class_tokens: int) -> None:
    """`FromPatches` inverts cutting an image into patches, row by row."""
    x = torch.randn(2, 3, 8, 12)
    tokens = F.unfold(x, kernel_size=4, stride=4).transpose(1, 2)  # (B, T=2*3, C 4 4)
    tokens = torch.cat([torch.randn(2, class_tokens, 48), tokens], 1)
    network = Transposed()(tuple(tokens.shape[1:]), (3, 8, 12))
    assert isinstance(network[1], FromPatches)
    assert torch.equal(network[1](tokens), x)
    assert network[0].weight.shape == (48, 48)


def test_tokens_that_are_no_patches() -> None:
    """Neither six tokens nor five tile 8x8, so one linear layer reads all of them."""
    network = Transposed()((6, 5), (3, 8, 8))
    (linear,) = [m for m in network if isinstance(m, nn.Linear)]
    assert linear.weight.shape == (3 * 8 * 8, 6 * 5)


def test_decoders_are_light() -> None:
    """On every convolution of VGG11c, before its pooling. The first one is left out of the bound,
    because with three input channels it is light itself."""
    example = torch.zeros(1, 3, 32, 32)
    blocks = cut(models.vgg11c(), blocks="all", example=example)
    h, own, added = example, [], {Transposed(): 0, Bilinear(): 0, Same(): 0}
    for block in list(blocks)[:-2]:
        own.append(flops(block, h))
        unpooled = nn.Sequential(
            *[m for m in modules_in_order(block) if not isinstance(m, nn.MaxPool2d)]
        )(h)
        for decoder in added:
            cost = flops(decoder(tuple(unpooled.shape[1:]), IMAGE), unpooled)
            added[decoder] += cost
            if len(own) > 1:
                assert cost < 0.25 * own[-1], (decoder, len(own))
        h = block(h).detach()
    assert added[Transposed()] < 0.08 * sum(own)
    assert added[Bilinear()] < 0.04 * sum(own)
    assert added[Same()] < 0.04 * sum(own)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Transposed(channels=0),
        lambda: Transposed(kernel_size=-1),
        lambda: Bilinear(layers=0),
        lambda: Bilinear(channels=0),
        lambda: Bilinear(kernel_size=0),
        lambda: Same(layers=0),
        lambda: Same(channels=-3),
        lambda: Same(kernel_size=0),
    ],
)
def test_sizes_below_one(make: object) -> None:
    with pytest.raises(InputError, match=r"^heads\.\w+\(\w+=-?\d\): give at least 1$"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("decoder", [Transposed, Bilinear, Same])
def test_even_kernels(decoder: type[Decoder]) -> None:
    with pytest.raises(InputError, match=rf"heads\.{decoder.__name__}\(kernel_size=4\).*odd"):
        decoder(kernel_size=4)  # type: ignore[call-arg]


@pytest.mark.parametrize("decoder", [Transposed(), Bilinear()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("shape", [(3, 2, 4, 4), ()])
def test_shapes_without_a_reading(decoder: Decoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"a decoder takes vectors \(D,\), feature maps") as e:
        decoder(shape, IMAGE)
    assert str(shape) in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_same_needs_a_resolution(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"heads\.Same: .* no resolution to keep; heads\.Trans"):
        Same()(shape, IMAGE)


@pytest.mark.parametrize("decoder", ALL, ids=lambda d: type(d).__name__)
def test_only_images(decoder: Decoder) -> None:
    with pytest.raises(InputError, match=r"asked for \(10,\) for each sample, which is no image"):
        decoder((3, 8, 8), (10,))


def test_recipes_are_values() -> None:
    assert heads.Transposed(channels=3) == heads.Transposed(channels=3) != heads.Transposed()
    with pytest.raises(AttributeError):
        heads.Same().channels = 5  # type: ignore[misc]


@pytest.mark.parametrize("decoder", ALL, ids=lambda d: type(d).__name__)
def test_images_with_channels_last_are_refused(decoder: Decoder) -> None:
    with pytest.raises(InputError, match="images with channels last"):
        decoder((5, 8, 8), ChannelsLastShape((32, 32, 3)))
