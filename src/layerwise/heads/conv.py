"""A convolutional head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from layerwise.arguments import DEEPEST, at_least, check_fields
from layerwise.errors import InputError, choices
from layerwise.heads.head import Head, Shape, feature_maps, one_label

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class Conv(Head):
    """[reduce,] `layers` x (convolution, BatchNorm, activation), [pool,] flatten, [hidden,] linear.

    On a vector (the output of a fully connected layer) only the layers after the convolutions
    remain. At full resolution the head costs as much as a convolution of the network itself;
    `reduce` makes it light. With stride=2 and widen=2 it continues as networks do, with half the
    resolution and twice the channels: a layer then costs half of one that keeps both.

    Args:
        layers: the number of convolutions.
        channels: the output channels of the first convolution; null for `widen` times the block's.
        kernel_size: the kernel size of each convolution, odd.
        reduce: average the feature maps down to reduce x reduce before the convolutions.
        pool: average down to pool x pool after the convolutions; null keeps every position.
        hidden: units of a hidden layer (linear, activation) before the last; null for none.
        stride: the stride of each convolution; 1 keeps the resolution.
        widen: the factor between the channels of a convolution and those of the one before.
        activation: relu or gelu.
        scale: whether BatchNorm has a trained scale besides its bias.

    Raises:
        InputError: a size below 1; an even kernel size; when called: a block's output that is
            neither feature maps nor a vector, or a network with more than one label per sample.
    """

    layers: int = 1
    channels: int | None = None
    kernel_size: int = 3
    reduce: int | None = None
    pool: int | None = 2
    hidden: int | None = None
    stride: int = 1
    widen: int = 1
    activation: Literal["relu", "gelu"] = "relu"
    scale: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "heads.Conv")
        at_least(1, "heads.Conv", DEEPEST, layers=self.layers)
        at_least(
            1,
            "heads.Conv",
            channels=self.channels,
            kernel_size=self.kernel_size,
            reduce=self.reduce,
            pool=self.pool,
            hidden=self.hidden,
            stride=self.stride,
            widen=self.widen,
        )
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"heads.Conv(activation={self.activation!r}): "
                f"{choices(self.activation, ACTIVATIONS)}"
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
            layers += [nn.Linear(features, self.hidden), ACTIVATIONS[self.activation]()]
            features = self.hidden
        return nn.Sequential(*layers, nn.Linear(features, out_shape[-1]))

    def _of_maps(self, in_shape: Shape) -> tuple[list[nn.Module], int]:
        """The convolutional part, (B, *in_shape) -> (B, D), and D."""
        layers, (channels, height, width) = feature_maps(in_shape, "heads.Conv")
        if self.reduce is not None and (height > self.reduce or width > self.reduce):
            height, width = min(self.reduce, height), min(self.reduce, width)
            layers.append(nn.AdaptiveAvgPool2d((height, width)))
        k = self.kernel_size
        for i in range(self.layers):
            out = channels * self.widen if i or self.channels is None else self.channels
            # On one position a stride changes nothing, and oneDNN's bfloat16 kernel gives NaN.
            stride = self.stride if max(height, width) > 1 else 1
            norm = nn.BatchNorm2d(out)
            norm.weight.requires_grad_(self.scale)
            convolution = nn.Conv2d(channels, out, k, stride, padding=k // 2, bias=False)
            layers += [convolution, norm, ACTIVATIONS[self.activation]()]
            channels, height, width = out, -(-height // stride), -(-width // stride)
        # feature_maps has made sure that the order is (C, H, W).
        if self.pool is not None and (height > self.pool or width > self.pool):
            height, width = min(self.pool, height), min(self.pool, width)
            layers.append(nn.AdaptiveAvgPool2d((height, width)))
        return [*layers, nn.Flatten()], channels * height * width
