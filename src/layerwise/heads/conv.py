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
    full resolution its cost is a convolution of the network's own; `reduce` makes it light.

    Args:
        layers: how many convolutions.
        channels: their output channels; null keeps the block's.
        kernel_size: odd; the resolution is kept.
        reduce: average the feature maps down to reduce x reduce before the convolutions.
        pool: average down to pool x pool after them; null keeps every position.
        hidden: units of a hidden layer (linear, ReLU) before the last; null for none.
    """

    layers: int = 1
    channels: int | None = None
    kernel_size: int = 3
    reduce: int | None = None
    pool: int | None = 2
    hidden: int | None = None

    def __post_init__(self) -> None:
        positive(
            "heads.Conv",
            layers=self.layers,
            channels=self.channels,
            kernel_size=self.kernel_size,
            reduce=self.reduce,
            pool=self.pool,
            hidden=self.hidden,
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
        for _ in range(self.layers):
            out = self.channels or channels
            layers += [
                nn.Conv2d(channels, out, self.kernel_size, padding="same", bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        # After feature_maps the order is (C, H, W), also where H = W = C could be read otherwise.
        if self.pool is not None and (height > self.pool or width > self.pool):
            height, width = min(self.pool, height), min(self.pool, width)
            layers.append(nn.AdaptiveAvgPool2d((height, width)))
        return [*layers, nn.Flatten()], channels * height * width
