"""Auxiliary networks that predict an image, the network's input, from a block's output."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import DEEPEST, at_least, check_fields
from layerwise.blocks.layout import ChannelsLastShape
from layerwise.errors import InputError
from layerwise.heads.head import Shape, feature_maps


class Decoder(ABC):
    """The recipe of an auxiliary network that predicts an image: widths and depths, but no sizes.

    Calling it with shapes (without the batch dimension) makes the network:

        in_shape    (D,) a vector; (C, H, W) feature maps; `ChannelsLastShape((H, W, C))`, maps of a
                    network that keeps channels last; (T, D) tokens
        out_shape   (C, H, W), an image

    Any function of the same two arguments can be used as a decoder.
    """

    @abstractmethod
    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """The auxiliary network: (B, *in_shape) -> (B, *out_shape), or fewer pixels of it.

        Raises:
            InputError: shapes that the decoder does not support.
        """


@dataclass(frozen=True)
class Transposed(Decoder):
    """[1x1 convolution, BatchNorm, ReLU,] transposed convolutions that double the resolution, each
    with BatchNorm and ReLU, convolution.

    Transposed convolutions have stride 2. Their number is chosen so that the resolution comes
    nearest to the image's; a bilinear interpolation does the rest. Channels halve from one
    convolution to the next and end at `channels`. The 1x1 convolution reduces a block with more
    channels than that, so that all transposed convolutions cost the same, and little.

    A vector goes through one linear layer to the whole image. So do tokens, unless they are the
    image's patches in order (with or without a class token before them): then each token predicts
    its own patch.

    Args:
        channels: the channels at the image's resolution, before the last convolution; twice as
            many for each halving of the resolution, but at most the block's own. null: the block's
            own channels halve from the start, without the 1x1 convolution.
        kernel_size: the kernel size of the last convolution, odd. With 3 the squared error curves
            up to nine times as much in its weights: on grey images, SGD with momentum 0.9 and
            lr 0.1 diverged with 3 and did not with 1.
        overlap: whether transposed convolutions have kernel 4, so that neighbouring outputs share
            inputs, or kernel 2.

    Raises:
        InputError: a size below 1; an even kernel size; when called: an output that is not an
            image, or a block's output that is not a vector, feature maps or tokens.
    """

    channels: int | None = 16
    kernel_size: int = 1
    overlap: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "heads.Transposed")
        _check("heads.Transposed", self.kernel_size, channels=self.channels)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        image, height, width = _image(out_shape, "heads.Transposed")
        if len(in_shape) != 3:
            return _linear(in_shape, out_shape, "heads.Transposed")
        layers, (features, h, w) = feature_maps(in_shape, "heads.Transposed")
        doublings = max(0, round(math.log2(height * width / (h * w)) / 2))
        if self.channels is None:
            sizes = [max(1, features >> k) for k in range(doublings + 1)]
        else:
            sizes = [min(features, self.channels << k) for k in reversed(range(doublings + 1))]
        kernel, padding = (4, 1) if self.overlap else (2, 0)
        if sizes[0] < features:
            layers += _unit(nn.Conv2d(features, sizes[0], 1, bias=False))
        for channels, out in itertools.pairwise(sizes):
            layers += _unit(nn.ConvTranspose2d(channels, out, kernel, 2, padding, bias=False))
        if (h << doublings, w << doublings) != (height, width):
            layers.append(nn.Upsample((height, width), mode="bilinear"))
        layers.append(nn.Conv2d(sizes[-1], image, self.kernel_size, padding="same"))
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class Bilinear(Decoder):
    """[1x1 convolution to `channels`, BatchNorm, ReLU,] `layers` times (convolution, BatchNorm,
    ReLU), bilinear interpolation to the image's size, convolution.

    All convolutions but the last are at the block's own resolution, so the prediction is smooth if
    that is far below the image's. The 1x1 convolution is there if the block has more than
    `channels`. Vectors and tokens are treated as in `Transposed`.

    Args:
        layers: the number of convolutions before the interpolation.
        channels: their output channels.
        kernel_size: the kernel size of these and of the last convolution, odd.

    Raises:
        InputError: as `Transposed`.
    """

    layers: int = 1
    channels: int = 16
    kernel_size: int = 3

    def __post_init__(self) -> None:
        check_fields(self, "heads.Bilinear")
        at_least(1, "heads.Bilinear", DEEPEST, layers=self.layers)
        _check("heads.Bilinear", self.kernel_size, channels=self.channels)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        image, height, width = _image(out_shape, "heads.Bilinear")
        if len(in_shape) != 3:
            return _linear(in_shape, out_shape, "heads.Bilinear")
        layers, (features, h, w) = feature_maps(in_shape, "heads.Bilinear")
        layers += _convolutions(features, self.layers, self.channels, self.kernel_size)
        if (h, w) != (height, width):
            layers.append(nn.Upsample((height, width), mode="bilinear"))
        layers.append(nn.Conv2d(self.channels, image, self.kernel_size, padding="same"))
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class Same(Decoder):
    """[1x1 convolution to `channels`, BatchNorm, ReLU,] `layers` times (convolution, BatchNorm,
    ReLU), 1x1 convolution: an image at the block's own resolution.

    The first 1x1 convolution is there if the block has more than `channels`. The decoder reads
    feature maps only.

    Args:
        layers: the number of convolutions before the last.
        channels: their output channels.
        kernel_size: their kernel size, odd.

    Raises:
        InputError: as `Transposed`, also for a block's output that is not feature maps.
    """

    layers: int = 1
    channels: int = 16
    kernel_size: int = 3

    def __post_init__(self) -> None:
        check_fields(self, "heads.Same")
        at_least(1, "heads.Same", DEEPEST, layers=self.layers)
        _check("heads.Same", self.kernel_size, channels=self.channels)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        image, _, _ = _image(out_shape, "heads.Same")
        if len(in_shape) != 3:
            raise InputError(
                f"heads.Same: a block gives {in_shape} for each sample, which has no resolution to "
                "keep; heads.Transposed and heads.Bilinear also take vectors (D,) and tokens (T, D)"
            )
        layers, (features, _, _) = feature_maps(in_shape, "heads.Same")
        layers += _convolutions(features, self.layers, self.channels, self.kernel_size)
        layers.append(nn.Conv2d(self.channels, image, 1))
        return nn.Sequential(*layers)


class FromPatches(nn.Module):
    """An image of tokens that are its patches, row by row: (B, T, C side^2) -> (B, C, H, W).

    If there are more tokens than patches, the first ones (a class token) are dropped.

    Args:
        grid: the number of patches, (rows, columns).
        side: the side of a patch, in pixels.
    """

    def __init__(self, grid: tuple[int, int], side: int):
        super().__init__()
        self.grid, self.side = grid, side

    def forward(self, h: Tensor) -> Tensor:
        patches = h[:, -self.grid[0] * self.grid[1] :].transpose(1, 2).unflatten(2, self.grid)
        return F.pixel_shuffle(patches, self.side)


def _check(asked_by: str, kernel_size: int, **sizes: int | None) -> None:
    at_least(1, asked_by, kernel_size=kernel_size, **sizes)
    if kernel_size % 2 == 0:
        raise InputError(
            f"{asked_by}(kernel_size={kernel_size}): an even kernel has no centre, so it would "
            "shift the image; give an odd one"
        )


def _image(out_shape: Shape, asked_by: str) -> Shape:
    if len(out_shape) != 3:
        raise InputError(
            f"{asked_by}: asked for {tuple(out_shape)} for each sample, which is no image; a "
            "decoder predicts (C, H, W)"
        )
    if isinstance(out_shape, ChannelsLastShape):
        raise InputError(
            f"{asked_by}: the network takes images with channels last, {tuple(out_shape)}; a "
            "decoder predicts (C, H, W): give the network such images"
        )
    return out_shape


def _unit(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]


def _convolutions(features: int, layers: int, channels: int, kernel_size: int) -> list[nn.Module]:
    found = []
    if channels < features:
        found += _unit(nn.Conv2d(features, channels, 1, bias=False))
        features = channels
    for _ in range(layers):
        found += _unit(nn.Conv2d(features, channels, kernel_size, padding="same", bias=False))
        features = channels
    return found


def _linear(in_shape: Shape, out_shape: Shape, asked_by: str) -> nn.Sequential:
    """A linear layer to the image, for a block whose output is not feature maps."""
    if len(in_shape) not in (1, 2):
        raise InputError(
            f"{asked_by}: a block gives {in_shape} for each sample; a decoder takes vectors (D,), "
            "feature maps (C, H, W) and tokens (T, D)"
        )
    channels, height, width = out_shape
    if len(in_shape) == 2:
        tokens, features = in_shape
        for patches in (tokens, tokens - 1):  # without a class token, with one
            side = math.isqrt(height * width // max(1, patches))
            if side and height % side == width % side == 0:
                grid = (height // side, width // side)
                if grid[0] * grid[1] == patches:
                    linear = nn.Linear(features, channels * side * side)
                    return nn.Sequential(linear, FromPatches(grid, side))
    linear = nn.Linear(math.prod(in_shape), math.prod(out_shape))
    return nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, out_shape))
