"""The head of decoupled greedy learning."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from layerwise.arguments import DEEPEST, at_least, check_fields
from layerwise.heads.head import Head, Shape, feature_maps, one_label


@dataclass(frozen=True)
class MLPSR(Head):
    """MLP-SR-aux: reduce the resolution by 4, 1x1 convolutions, 2x2 pooling, MLP.

    Belilovsky et al. 2020 (arXiv:1901.08164), section 4. Average pooling to a quarter of each
    side; `convs` times (1x1 convolution, BatchNorm, ReLU); average pooling to 2 x 2; `layers`
    times (linear of the same width, BatchNorm, ReLU); linear. It takes a few per cent of the
    network's FLOPs. On a vector (the output of a fully connected layer) only the MLP remains.

    Args:
        convs: the number of 1x1 convolutions, each with as many channels as the block.
        layers: the number of hidden layers in the MLP.
        width: units in each hidden layer; null for 4 x channels, as in the authors' code.

    Raises:
        InputError: a size below 1; when called: a block's output that is neither feature maps nor
            a vector, or a network with more than one label per sample.
    """

    convs: int = 3
    layers: int = 2
    width: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "heads.MLPSR")
        at_least(1, "heads.MLPSR", DEEPEST, convs=self.convs, layers=self.layers)
        at_least(1, "heads.MLPSR", width=self.width)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        one_label(out_shape, "heads.MLPSR")
        layers, features = self._of_maps(in_shape) if len(in_shape) != 1 else ([], in_shape[0])
        for _ in range(self.layers):
            units = self.width or features
            layers += [nn.Linear(features, units), nn.BatchNorm1d(units), nn.ReLU()]
            features = units
        return nn.Sequential(*layers, nn.Linear(features, out_shape[-1]))

    def _of_maps(self, in_shape: Shape) -> tuple[list[nn.Module], int]:
        """The convolutional part, (B, *in_shape) -> (B, D), and D."""
        layers, (channels, height, width) = feature_maps(in_shape, "heads.MLPSR")
        height, width = math.ceil(height / 4), math.ceil(width / 4)
        layers.append(nn.AdaptiveAvgPool2d((height, width)))
        for _ in range(self.convs):
            layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
            layers.append(nn.ReLU())
        height, width = min(height, 2), min(width, 2)
        layers += [nn.AdaptiveAvgPool2d((height, width)), nn.Flatten()]
        return layers, channels * height * width
