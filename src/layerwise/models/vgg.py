"""VGG for small images, and the variants that the local-learning literature uses.

A plan lists output channels; a pooling follows the layers marked so. All convolutions are 3x3 with
BatchNorm; the layers of 4096 units of the original are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from layerwise.models.layers import Shape, chain, conv_layer, halved

Plan = Sequence[int | str]

# Simonyan & Zisserman 2015 (arXiv:1409.1556), configurations A, B, D, E.
VGG: dict[str, Plan] = {
    "vgg11": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg13": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg16": [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"],
    "vgg19": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}
# The same layers with three poolings: the first and the last go, so 32x32 ends at 4x4.
VGG_C: dict[str, Plan] = {
    "vgg8c": [64, 128, "M", 256, "M", 512, "M", 512],
    "vgg11c": [64, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512],
    "vgg13c": [64, 64, 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512],
    "vgg16c": [64, 64, 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3],
    "vgg19c": [64, 64, 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4],
}
# Nøkland & Eidnes 2019 (arXiv:1901.06656), table 1; 1024 hidden units before the output. Deviations:
# no bias before BatchNorm; their local losses read a layer before its pooling, a block of ours ends
# after it.
VGG_B: dict[str, Plan] = {
    "vgg8b": [128, 256, "M", 256, 512, "M", 512, "M", 512, "M"],
    "vgg11b": [128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M"],
}


def _vgg(
    name: str,
    plan: Plan,
    shape: Shape,
    num_classes: int,
    width: float,
    hidden: int | None,
    dropout: float,
) -> nn.Sequential:
    height, wide = halved(shape, plan.count("M"), name)
    named: list[tuple[str, nn.Module]] = []
    channels = shape[0]
    for here, after in zip(plan, [*plan[1:], None], strict=True):
        if isinstance(here, int):
            out = max(1, round(here * width))
            layer = conv_layer(channels, out, pool=after == "M", dropout=dropout)
            named.append((f"conv{len(named) + 1}", layer))
            channels = out
    features = channels * height * wide
    flatten: list[nn.Module] = [nn.Flatten()]
    if hidden is not None:
        fc = [*flatten, nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        fc += [nn.Dropout(dropout)] if dropout else []
        named.append(("fc", nn.Sequential(*fc)))
        features, flatten = hidden, []
    classifier = nn.Sequential(*flatten, nn.Linear(features, num_classes))
    return chain([*named, ("classifier", classifier)])


def vgg11(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG11 for small images: 8 convolutions, 5 poolings, one linear layer.

    Args:
        shape: of an image, (C, H, W); at least 32x32.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg11", VGG["vgg11"], shape, num_classes, width, hidden, dropout)


def vgg13(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG13 for small images: 10 convolutions, 5 poolings, one linear layer.

    Args:
        shape: of an image, (C, H, W); at least 32x32.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg13", VGG["vgg13"], shape, num_classes, width, hidden, dropout)


def vgg16(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG16 for small images: 13 convolutions, 5 poolings, one linear layer.

    Args:
        shape: of an image, (C, H, W); at least 32x32.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg16", VGG["vgg16"], shape, num_classes, width, hidden, dropout)


def vgg19(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG19 for small images: 16 convolutions, 5 poolings, one linear layer.

    Args:
        shape: of an image, (C, H, W); at least 32x32.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg19", VGG["vgg19"], shape, num_classes, width, hidden, dropout)


def vgg8c(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = 512,
    dropout: float = 0.0,
) -> nn.Sequential:
    """The 5-convolution sister of VGG11c.

    Args:
        shape: of an image, (C, H, W); at least 8x8.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg8c", VGG_C["vgg8c"], shape, num_classes, width, hidden, dropout)


def vgg11c(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = 512,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG11's layers with three poolings: 32x32 images end at 4x4.

    Args:
        shape: of an image, (C, H, W); at least 8x8.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg11c", VGG_C["vgg11c"], shape, num_classes, width, hidden, dropout)


def vgg13c(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = 512,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG13's layers with three poolings: 32x32 images end at 4x4.

    Args:
        shape: of an image, (C, H, W); at least 8x8.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg13c", VGG_C["vgg13c"], shape, num_classes, width, hidden, dropout)


def vgg16c(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = 512,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG16's layers with three poolings: 32x32 images end at 4x4.

    Args:
        shape: of an image, (C, H, W); at least 8x8.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg16c", VGG_C["vgg16c"], shape, num_classes, width, hidden, dropout)


def vgg19c(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = 512,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG19's layers with three poolings: 32x32 images end at 4x4.

    Args:
        shape: of an image, (C, H, W); at least 8x8.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg19c", VGG_C["vgg19c"], shape, num_classes, width, hidden, dropout)


def vgg8b(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = 1024,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG8b of Nøkland & Eidnes 2019: 6 convolutions, 4 poolings, 1024 hidden units.

    Args:
        shape: of an image, (C, H, W); at least 16x16.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg8b", VGG_B["vgg8b"], shape, num_classes, width, hidden, dropout)


def vgg11b(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    width: float = 1.0,
    hidden: int | None = 1024,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG11b of Nøkland & Eidnes 2019: 9 convolutions, 4 poolings, 1024 hidden units.

    Args:
        shape: of an image, (C, H, W); at least 16x16.
        num_classes: class scores.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, BatchNorm, ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
    """
    return _vgg("vgg11b", VGG_B["vgg11b"], shape, num_classes, width, hidden, dropout)
