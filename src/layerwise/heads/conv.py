"""A convolutional head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from layerwise.errors import InputError
from layerwise.heads.head import Head, Shape, feature_maps, one_label, positive


@dataclass(frozen=True)
class Conv(Head):
    """[reduce,] `layers` times (convolution, BatchNorm, ReLU), [pool,] flatten, [hidden,] linear.

    On a vector, as a fully connected layer gives, only what follows the convolutions remains. At
    full resolution its cost is a convolution of the network's own; `reduce` makes it light. With
    stride=2 and widen=2 it goes on as networks do, with half the resolution and twice the channels:
    a layer then costs half of one that keeps both.

    Args:
        layers: how many convolutions.
        channels: the first one's output channels; null for `widen` times the block's.
        kernel_size: of each convolution, odd.
        reduce: average the feature maps down to reduce x reduce before the convolutions.
        pool: average down to pool x pool after them; null keeps every position.
        hidden: units of a hidden layer (linear, ReLU) before the last; null for none.
        stride: of each convolution; 1 keeps the resolution.
        widen: how many times as many channels each convolution has as the one before.
    """

    layers: int = 1
    channels: int | None = None
    kernel_size: int = 3
    reduce: int | None = None
    pool: int | None = 2
    hidden: int | None = None
    stride: int = 1
    widen: int = 1

    def __post_init__(self) -> None:
        positive(
            "heads.Conv",
            layers=self.layers,
            channels=self.channels,
            kernel_size=self.kernel_size,
            reduce=self.reduce,
            pool=self.pool,
            hidden=self.hidden,
            stride=self.stride,
            widen=self.widen,
        )
        if self.kernel_size % 2 == 0:
            raise InputError(
                f"heads.Conv(kernel_size={self.kernel_size}): an even kernel has no centre, so it "
                "would shift the feature maps; give an odd one"
            )

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        one_label(out_shape, "heads.Conv")
        layers, features = self._of_maps(in_shape) if len(in_shape) != 1 else ([], in_shape[0])
        if self.hidden is not None:
            layers += [nn.Linear(features, self.hidden), nn.ReLU()]
            features = self.hidden
        return nn.Sequential(*layers, nn.Linear(features, out_shape[-1]))

    def _of_maps(self, in_shape: Shape) -> tuple[list[nn.Module], int]:
        """The convolutional part, and the length of the vector that it gives."""
        layers, (channels, height, width) = feature_maps(in_shape, "heads.Conv")
        if self.reduce is not None and (height > self.reduce or width > self.reduce):
            height, width = min(self.reduce, height), min(self.reduce, width)
            layers.append(nn.AdaptiveAvgPool2d((height, width)))
        k = self.kernel_size
        for i in range(self.layers):
            out = channels * self.widen if i or self.channels is None else self.channels
            # Of one position a stride changes nothing, and oneDNN's bfloat16 kernel gives NaN.
            stride = self.stride if max(height, width) > 1 else 1
            layers += [
                nn.Conv2d(channels, out, k, stride, padding=k // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels, height, width = out, -(-height // stride), -(-width // stride)
        # After feature_maps the order is (C, H, W), also where H = W = C could be read otherwise.
        if self.pool is not None and (height > self.pool or width > self.pool):
            height, width = min(self.pool, height), min(self.pool, width)
            layers.append(nn.AdaptiveAvgPool2d((height, width)))
        return [*layers, nn.Flatten()], channels * height * width
