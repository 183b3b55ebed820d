"""The auxiliary network of target propagation, which predicts a block's input from its output."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import DEEPEST, at_least, check_fields
from layerwise.errors import InputError
from layerwise.heads.head import ChannelsLast, Shape, feature_maps


@dataclass(frozen=True)
class Inverse:
    """The recipe of an approximate inverse, from a block's output back to its input.

    `layers` times (convolution, ReLU) at the resolution of the block's output, then a transposed
    convolution to the resolution of its input. On vectors, and on each token, the same with linear
    layers.

    If the input has s times the output's height and width, the transposed convolution has stride s
    and kernel `kernel_size` + s - 1. It can then be the transpose of a convolution with
    `kernel_size` followed by average pooling over s x s, including the border that pooling leaves
    out. Between other shapes, such as from class scores to feature maps, linear layers map the
    whole output to the whole input. From many classes to large maps these are many weights: see
    `pool`. There is no normalization, because it would treat a target differently from the
    activation that it is compared with.

    Calling it with the shapes of the block's output and input, without the batch dimension, makes
    the network: (B, *out_shape) -> (B, *in_shape). Any function of the same two arguments can be
    used as an inverse.

    Args:
        layers: the number of layers before the last; with 0 the inverse is linear.
        width: their channels or units; null for those of the block's output.
        kernel_size: the kernel size of the convolutions, odd.
        pool: from a vector to feature maps, predict pool x pool positions, each for its part of
            the map, which suits a block that averages over positions; null predicts every position.
        fixed: whether all layers but the last stay as they were drawn, so that only a linear layer
            learns (the random hidden layer of Meulemans et al. 2020, arXiv:2006.14331, who have
            tanh, and one such layer for all blocks).

    Raises:
        InputError: a size below 1 (`layers` below 0); an even kernel size; `fixed` without layers
            that could be fixed.
    """

    layers: int = 0
    width: int | None = None
    kernel_size: int = 3
    pool: int | None = None
    fixed: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "heads.Inverse")
        at_least(0, "heads.Inverse", DEEPEST, layers=self.layers)
        at_least(1, "heads.Inverse", width=self.width, kernel_size=self.kernel_size, pool=self.pool)
        if self.fixed and not self.layers:
            raise InputError(
                "heads.Inverse(fixed=True, layers=0): all layers but the last are fixed, and there "
                "are no others; give layers=1 or more"
            )
        if self.kernel_size % 2 == 0:
            raise InputError(
                f"heads.Inverse(kernel_size={self.kernel_size}): an even kernel has no centre, so "
                "the predicted input would be shifted; give an odd one"
            )

    def __call__(self, out_shape: Shape, in_shape: Shape) -> nn.Sequential:
        if len(out_shape) == len(in_shape) == 3:
            return self._of_maps(out_shape, in_shape)
        if len(out_shape) == len(in_shape) == 2 and out_shape[0] == in_shape[0]:  # token by token
            return nn.Sequential(*self._linear(out_shape[-1], in_shape[-1]))
        if len(out_shape) == 1 and len(in_shape) == 3 and self.pool is not None:
            return self._to_maps(out_shape[0], in_shape, self.pool)
        layers = self._linear(math.prod(out_shape), math.prod(in_shape))
        if len(out_shape) > 1:
            layers.insert(0, nn.Flatten())
        elif not out_shape:  # one number for each sample, (B,)
            layers.insert(0, nn.Unflatten(0, (-1, 1)))
        if len(in_shape) > 1:
            layers.append(nn.Unflatten(1, in_shape))
        return nn.Sequential(*layers)

    def _linear(self, features: int, out: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for _ in range(self.layers):
            units = self.width or features
            layers += [nn.Linear(features, units).requires_grad_(not self.fixed), nn.ReLU()]
            features = units
        return [*layers, nn.Linear(features, out)]

    def _to_maps(self, features: int, in_shape: Shape, pool: int) -> nn.Sequential:
        last, (channels, height, width) = feature_maps(in_shape, "heads.Inverse")
        rows, columns = min(pool, height), min(pool, width)
        return nn.Sequential(
            *self._linear(features, channels * rows * columns),
            nn.Unflatten(1, (channels, rows, columns)),
            nn.Upsample((height, width)),
            *([ChannelsLast()] if last else []),
        )

    def _of_maps(self, out_shape: Shape, in_shape: Shape) -> nn.Sequential:
        layers, (features, h, w) = feature_maps(out_shape, "heads.Inverse")
        last, (channels, height, width) = feature_maps(in_shape, "heads.Inverse")
        for _ in range(self.layers):
            units = self.width or features
            convolution = nn.Conv2d(features, units, self.kernel_size, padding="same")
            layers += [convolution.requires_grad_(not self.fixed), nn.ReLU()]
            features = units
        if h > height or w > width:  # the block interpolates
            h, w = min(h, height), min(w, width)
            layers.append(nn.AdaptiveAvgPool2d((h, w)))
        strides = round(height / h), round(width / w)
        kernel = self.kernel_size + strides[0] - 1, self.kernel_size + strides[1] - 1
        border = self.kernel_size // 2
        fits = (h * strides[0], w * strides[1]) == (height, width)
        layers.append(
            nn.ConvTranspose2d(features, channels, kernel, strides, border if fits else 0)
        )
        layers += [] if fits else [_Fit(border, height, width)]
        return nn.Sequential(*layers, *([ChannelsLast()] if last else []))


class _Fit(nn.Module):
    """Crops or pads feature maps, (B, C, h, w) -> (B, C, height, width).

    The first `border` rows and columns are dropped. At the end, surplus rows and columns are
    dropped, and missing ones are filled with zeros.
    """

    def __init__(self, border: int, height: int, width: int):
        super().__init__()
        self.border, self.height, self.width = border, height, width

    def forward(self, h: Tensor) -> Tensor:
        more = [side + self.border for side in (self.width, self.height)]
        right, bottom = more[0] - h.shape[-1], more[1] - h.shape[-2]
        return F.pad(h, (-self.border, right, -self.border, bottom))

    def extra_repr(self) -> str:
        return f"{self.border}, {self.height}, {self.width}"
