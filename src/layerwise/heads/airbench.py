"""A head that goes on as the network `models.airbench` does."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from layerwise.arguments import DEEPEST, at_least, check_fields
from layerwise.heads.head import Head, Shape, feature_maps, one_label
from layerwise.models.airbench import convolution, small_linear


@dataclass(frozen=True)
class Airbench(Head):
    """`layers` convolutions of `models.airbench`, max pooling to one position, linear.

    Feature maps that are larger than `side` are first halved, by 2x2 max pooling; so are those that
    the first convolution gives, if they are larger than 3x3. Convolutions are 3x3 and start as the
    identity; BatchNorm with a bias and GELU follow them. The linear layer has no bias, and its
    weights start with the standard deviation 1 / (number of its inputs). On a vector only the
    linear layer remains. Jordan 2024 (arXiv:2404.00498) has the network, not the head.

    Args:
        layers: the number of convolutions.
        channels: the output channels of each.
        side: see above, in positions.

    Raises:
        InputError: a size below 1; when called: a block's output that is neither feature maps nor a
            vector, or a network with more than one label per sample.
    """

    layers: int = 2
    channels: int = 128
    side: int = 8

    def __post_init__(self) -> None:
        check_fields(self, "heads.Airbench")
        at_least(1, "heads.Airbench", DEEPEST, layers=self.layers)
        at_least(1, "heads.Airbench", channels=self.channels, side=self.side)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        one_label(out_shape, "heads.Airbench")
        if len(in_shape) == 1:
            return nn.Sequential(small_linear(in_shape[0], out_shape[0]))
        made, (channels, *sides) = feature_maps(in_shape, "heads.Airbench")
        if max(sides) > self.side and min(sides) > 1:
            made.append(nn.MaxPool2d(2))
            sides = [side // 2 for side in sides]
        for k in range(self.layers):
            made.append(convolution(channels, self.channels, pool=k == 0 and min(sides) > 3))
            channels = self.channels
        made += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), small_linear(channels, out_shape[0])]
        return nn.Sequential(*made)
