"""Three convolutional layers and a small MLP."""

from __future__ import annotations

from torch import nn

from layerwise.models.layers import (
    Shape,
    chain,
    checked_skip,
    conv_layer,
    halved,
    pooled_image,
)


def basic_cnn(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    channels: int = 128,
    kernel_size: int = 5,
    hidden: int = 256,
    skip: int = 0,
) -> nn.Sequential:
    """3 x (convolution, BatchNorm, ReLU, 2x2 max pooling), then an MLP with one hidden layer.

    Args:
        shape: of an image, (C, H, W).
        num_classes: class scores.
        channels: of each convolution.
        kernel_size: of each convolution; the resolution is kept.
        hidden: units of the MLP's hidden layer.
        skip: leave out this many of the first convolutions, but not their pooling: what the last
            layers can do without those before them.

    Raises:
        InputError: images too small for 3 poolings; no convolution left.
    """
    height, width = halved(shape, 3, "basic_cnn")
    named = pooled_image(checked_skip(skip, 3, "basic_cnn"))
    for number in range(skip + 1, 4):
        before = channels if number > skip + 1 else shape[0]
        named.append((f"conv{number}", conv_layer(before, channels, kernel_size, pool=True)))
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )
    return chain([*named, ("classifier", classifier)])
