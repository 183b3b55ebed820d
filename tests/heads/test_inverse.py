"""Approximate inverses: their shapes, and exact transposes that they can represent."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerwise import InputError
from layerwise.blocks import ChannelsLastShape
from layerwise.heads import Inverse

SHAPES = [  # (of a block's output, of its input)
    ((5,), (7,)),
    ((5,), (3, 8, 8)),
    ((5,), (2, 1, 5)),
    ((5,), ChannelsLastShape((8, 6, 3))),
    ((5,), (9, 6)),
    ((9, 6), (9, 4)),
    ((4, 6), (9, 4)),
    ((1, 6), (1, 4)),
    ((9, 6), (3, 8, 8)),
    ((3, 8, 8), (9, 6)),
    ((3, 8, 8), (5,)),
    ((6, 4, 4), (3, 8, 8)),
    ((6, 3, 3), (2, 7, 7)),
    ((6, 4, 4), (2, 7, 7)),
    ((6, 1, 1), (2, 5, 3)),
    ((6, 2, 5), (2, 8, 5)),
    ((6, 8, 8), (2, 4, 4)),
    (ChannelsLastShape((4, 3, 6)), ChannelsLastShape((8, 6, 3))),
]


@pytest.mark.parametrize("recipe", [Inverse(), Inverse(layers=2, width=9, kernel_size=5, pool=2)])
@pytest.mark.parametrize(("out_shape", "in_shape"), SHAPES)
def test_shapes(out_shape: tuple[int, ...], in_shape: tuple[int, ...], recipe: Inverse) -> None:
    inverse = recipe(out_shape, in_shape)
    h = torch.randn(2, *out_shape, requires_grad=True)
    back = inverse(h)
    assert back.shape == (2, *in_shape)
    back[0].square().sum().backward()
    assert h.grad[0].any()
    assert not h.grad[1].any()  # no sample reaches another


def test_tokens_one_by_one() -> None:
    inverse = Inverse(layers=1)((9, 6), (9, 4))
    h = torch.randn(2, 9, 6)
    torch.testing.assert_close(inverse(h)[:, 3:5], inverse(h[:, 3:5]))


@pytest.mark.parametrize("size", [8, 9])  # pooling leaves out the last row and column of 9
@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_it_can_be_the_transpose(kernel_size: int, pool: int, size: int) -> None:
    """The transpose of a convolution and average pooling: the kernel is the sum of the
    convolution's kernel at every place in the pool."""
    conv = nn.Conv2d(2, 3, kernel_size, padding="same", bias=False).double()
    block = nn.Sequential(conv, nn.AvgPool2d(pool))
    x = torch.randn(2, 2, size, size).double().requires_grad_()
    y = block(x)
    inverse = Inverse(kernel_size=kernel_size)(y.shape[1:], x.shape[1:]).double()
    weight, bias = inverse[0].weight, inverse[0].bias
    nn.init.zeros_(weight)
    nn.init.zeros_(bias)
    with torch.no_grad():
        for i in range(pool):
            for j in range(pool):
                place = weight[:, :, i : i + kernel_size, j : j + kernel_size]
                place += conv.weight / pool**2
    u = torch.randn_like(y)
    (wanted,) = torch.autograd.grad(y, x, u)
    torch.testing.assert_close(inverse(u), wanted)


def test_pooled_it_can_be_the_transpose_of_an_average() -> None:
    """The transpose of an average over positions and a linear layer after it."""
    block = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)).double()
    x = torch.randn(2, 3, 4, 6).double().requires_grad_()
    y = block(x)
    inverse = Inverse(pool=1)((5,), (3, 4, 6)).double()
    assert sum(p.numel() for p in inverse.parameters()) == 5 * 3 + 3
    nn.init.zeros_(inverse[0].bias)
    inverse[0].weight.data = block[2].weight.detach().T / 24
    u = torch.randn_like(y)
    torch.testing.assert_close(inverse(u), torch.autograd.grad(y, x, u)[0])


def test_bad_sizes() -> None:
    with pytest.raises(InputError, match=r"heads.Inverse\(kernel_size=4\): an even kernel") as e:
        Inverse(kernel_size=4)
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match=r"heads.Inverse\(layers=-1\): give at least 0"):
        Inverse(layers=-1)
    for options in ({"width": 0}, {"kernel_size": 0}, {"pool": 0}):
        with pytest.raises(InputError, match="give at least 1"):
            Inverse(**options)
