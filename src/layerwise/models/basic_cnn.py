"""Three convolutional layers and a small MLP."""

from __future__ import annotations

from torch import nn

from layerwise.models.layers import Shape, chain, conv_layer, halved


def basic_cnn(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    channels: int = 128,
    kernel_size: int = 5,
    hidden: int = 256,
) -> nn.Sequential:
    """3 x (convolution, BatchNorm, ReLU, 2x2 max pooling), then an MLP with one hidden layer.

    Args:
        shape: of an image, (C, H, W).
        num_classes: class scores.
        channels: of each convolution.
        kernel_size: of each convolution; the resolution is kept.
        hidden: units of the MLP's hidden layer.
    """
    height, width = halved(shape, 3, "basic_cnn")
    return chain(
        [
            ("conv1", conv_layer(shape[0], channels, kernel_size, pool=True)),
            ("conv2", conv_layer(channels, channels, kernel_size, pool=True)),
            ("conv3", conv_layer(channels, channels, kernel_size, pool=True)),
            (
                "classifier",
                nn.Sequential(
                    nn.Flatten(),
                    nn.Linear(channels * height * width, hidden),
                    nn.ReLU(inplace=True),
                    nn.Linear(hidden, num_classes),
                ),
            ),
        ]
    )
