"""Residual networks for small images (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import WIDEST, at_least, checks_arguments, positive
from layerwise.models.building_blocks import (
    MeanPool2d,
    Padding,
    Shape,
    chain,
    check_padding,
    check_sizes,
)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A).

    Where the resolution halves and the channels double, the shortcut takes every second pixel and
    pads the new channels with zeros.
    """

    def __init__(self, channels: int, out: int, stride: int, padding_mode: Padding = "zeros"):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False, padding_mode=padding_mode)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False, padding_mode=padding_mode)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.out = stride, out
        self.new_channels = out - channels

    def fitted(self, channels: int, halves: bool) -> ResidualBlock:
        """A new block with this block's output channels, for another number of input channels, at
        most that of the output; with stride 2 if it halves the maps."""
        stride = 2 if halves else self.stride
        return ResidualBlock(channels, self.out, stride, self.conv1.padding_mode)  # type: ignore

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, self.new_channels // 2, -(-self.new_channels // 2)))
        return F.relu(h + x)


# The docstring of all these functions, after its first line.
ARGUMENTS = """\
    Args:
        shape: of an image, (C, H, W).
        num_classes: number of classes.
        width: multiplies the channels 16, 32, 64.
        padding_mode: what convolutions read beyond the edge: zeros, or circular for the pixels of
            the opposite edge.

    Raises:
        InputError: a size below 1; a width that is not positive; another padding.
"""


def _resnet(
    layers: int, shape: Shape, num_classes: int, width: float, padding_mode: Padding
) -> nn.Sequential:
    per_stage = (layers - 2) // 6
    channels = max(1, round(16 * width))
    stem = nn.Sequential(
        nn.Conv2d(shape[0], channels, 3, 1, 1, bias=False, padding_mode=padding_mode),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )
    named: list[tuple[str, nn.Module]] = [("stem", stem)]
    for stage in range(3):
        out = max(1, round(16 * 2**stage * width))
        for i in range(per_stage):
            stride = 2 if stage > 0 and i == 0 else 1
            layer = ResidualBlock(channels, out, stride, padding_mode)
            named.append((f"block{len(named)}", layer))
            channels = out
    pool = MeanPool2d()
    classifier = nn.Sequential(pool, nn.Flatten(), nn.Linear(channels, num_classes))
    network = chain([*named, ("classifier", classifier)])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _of_depth(layers: int) -> Callable[[Callable[[], None]], Callable[..., nn.Module]]:
    """Decorates a name and a first line with the function that makes the network with this number
    of layers."""

    def made(named: Callable[[], None]) -> Callable[..., nn.Module]:
        name = named.__name__

        @checks_arguments
        def network(
            shape: Shape = (3, 32, 32),
            num_classes: int = 10,
            width: float = 1.0,
            padding_mode: Padding = "zeros",
        ) -> nn.Sequential:
            check_sizes(name, shape, num_classes)
            positive(name, width=width)
            at_least(0, name, WIDEST, width=width)
            check_padding(name, padding_mode)
            return _resnet(layers, shape, num_classes, width, padding_mode)

        network.__name__ = network.__qualname__ = name
        network.__doc__ = f"{named.__doc__}\n\n{ARGUMENTS}"
        return network

    return made


@_of_depth(20)
def resnet20() -> None:
    """ResNet-20 for small images: 9 residual blocks."""


@_of_depth(32)
def resnet32() -> None:
    """ResNet-32 for small images: 15 residual blocks."""


@_of_depth(56)
def resnet56() -> None:
    """ResNet-56 for small images: 27 residual blocks."""


@_of_depth(110)
def resnet110() -> None:
    """ResNet-110 for small images: 54 residual blocks."""
