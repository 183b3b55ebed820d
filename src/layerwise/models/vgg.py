"""VGG for small images, and the variants that the local-learning literature uses.

A plan lists the output channels of convolutions; "M" is a 2x2 max pooling. All convolutions are 3x3
with BatchNorm; the original's layers of 4096 units are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from layerwise.arguments import WIDEST, at_least, checks_arguments, positive, share
from layerwise.models.building_blocks import (
    Padding,
    Shape,
    chain,
    check_padding,
    check_sizes,
    checked_skip,
    conv_layer,
    halved,
    pooled_image,
)

Plan = Sequence[int | str]

# Simonyan & Zisserman 2015 (arXiv:1409.1556), configurations A, B, D, E.
VGG: dict[str, Plan] = {
    "vgg11": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg13": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg16": [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"],
    "vgg19": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}
# The same layers with three poolings, so that 32x32 ends at 4x4: after the first two convolutions
# (four from vgg13c on), after those of 256 channels, and at the end.
VGG_C: dict[str, Plan] = {
    "vgg8c": [64, 128, "M", 256, 256, "M", 512, 512, "M"],
    "vgg11c": [64, 128, "M", 256, 256, "M", *[512] * 4, "M"],
    "vgg13c": [64, 64, 128, 128, "M", 256, 256, "M", *[512] * 4, "M"],
    "vgg16c": [64, 64, 128, 128, "M", *[256] * 3, "M", *[512] * 6, "M"],
    "vgg19c": [64, 64, 128, 128, "M", *[256] * 4, "M", *[512] * 8, "M"],
}
# Nøkland & Eidnes 2019 (arXiv:1901.06656), with 1024 hidden units before the output. Deviations: no
# bias before BatchNorm; the paper's local losses read a layer before its pooling, ours after it.
VGG_B: dict[str, Plan] = {
    "vgg8b": [128, 256, "M", 256, 512, "M", 512, "M", 512, "M"],
    "vgg11b": [128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M"],
}


# The docstring of all these functions, after its first line.
ARGUMENTS = """\
    Args:
        shape: of an image, (C, H, W); at least {least}x{least}.
        num_classes: number of classes.
        width: multiplies the channels.
        hidden: units of a hidden layer (linear, {norm}ReLU) before the output; null for none.
        dropout: probability of dropping a feature map after each convolution (and a hidden unit).
        skip: leave out this many of the first convolutions but keep their pooling; this shows how
            well the last layers do alone.
        padding_mode: what convolutions read beyond the edge: zeros, or circular for the pixels of
            the opposite edge.

    Raises:
        InputError: the images are smaller than that; no convolution is left.
"""


def _vgg(
    name: str,
    plan: Plan,
    shape: Shape,
    num_classes: int,
    width: float,
    hidden: int | None,
    norm: bool,
    dropout: float,
    skip: int,
    padding_mode: Padding,
) -> nn.Sequential:
    height, wide = halved(shape, plan.count("M"), name)
    convs = [k for k, here in enumerate(plan) if here != "M"]
    first = convs[checked_skip(skip, len(convs), name)]
    named = pooled_image(plan[:first].count("M"))
    channels = shape[0]
    for number, k in enumerate(convs[skip:], skip + 1):
        out = max(1, round(int(plan[k]) * width))
        pool = plan[k + 1 : k + 2] == ["M"]
        layer = conv_layer(channels, out, pool=pool, dropout=dropout, padding_mode=padding_mode)
        named.append((f"conv{number}", layer))
        channels = out
    features = channels * height * wide
    flatten: list[nn.Module] = [nn.Flatten()]
    if hidden is not None:
        fc = [*flatten, nn.Linear(features, hidden), *([nn.BatchNorm1d(hidden)] if norm else [])]
        fc += [nn.ReLU(inplace=True), *([nn.Dropout(dropout)] if dropout else [])]
        named.append(("fc", nn.Sequential(*fc)))
        features, flatten = hidden, []
    classifier = nn.Sequential(*flatten, nn.Linear(features, num_classes))
    return chain([*named, ("classifier", classifier)])


def _plan(
    plan: Plan, hidden: int | None = None, norm: bool = True
) -> Callable[[Callable[[], None]], Callable[..., nn.Module]]:
    """Decorates a name and a first line with the function that makes the network of this plan; all
    these functions take the same arguments. A hidden layer has BatchNorm if `norm` is set."""
    hidden_units, least = hidden, 2 ** plan.count("M")

    def made(named: Callable[[], None]) -> Callable[..., nn.Module]:
        name = named.__name__

        @checks_arguments
        def network(
            shape: Shape = (3, 32, 32),
            num_classes: int = 10,
            width: float = 1.0,
            hidden: int | None = hidden_units,
            dropout: float = 0.0,
            skip: int = 0,
            padding_mode: Padding = "zeros",
        ) -> nn.Sequential:
            check_sizes(name, shape, num_classes, hidden=hidden)
            positive(name, width=width)
            at_least(0, name, WIDEST, width=width)
            share(name, dropout=dropout)
            check_padding(name, padding_mode)
            return _vgg(
                name, plan, shape, num_classes, width, hidden, norm, dropout, skip, padding_mode
            )

        network.__name__ = network.__qualname__ = name
        arguments = ARGUMENTS.format(least=least, norm="BatchNorm, " if norm else "")
        network.__doc__ = f"{named.__doc__}\n\n{arguments}"
        return network

    return made


@_plan(VGG["vgg11"])
def vgg11() -> None:
    """VGG11 for small images: 5 poolings."""


@_plan(VGG["vgg13"])
def vgg13() -> None:
    """VGG13 for small images: 5 poolings."""


@_plan(VGG["vgg16"])
def vgg16() -> None:
    """VGG16 for small images: 5 poolings."""


@_plan(VGG["vgg19"])
def vgg19() -> None:
    """VGG19 for small images: 5 poolings."""


@_plan(VGG_C["vgg8c"], hidden=512, norm=False)
def vgg8c() -> None:
    """VGG8's layers with 3 poolings: 32x32 images end at 4x4."""


@_plan(VGG_C["vgg11c"], hidden=512, norm=False)
def vgg11c() -> None:
    """VGG11's layers with 3 poolings: 32x32 images end at 4x4."""


@_plan(VGG_C["vgg13c"], hidden=512, norm=False)
def vgg13c() -> None:
    """VGG13's layers with 3 poolings: 32x32 images end at 4x4."""


@_plan(VGG_C["vgg16c"], hidden=512, norm=False)
def vgg16c() -> None:
    """VGG16's layers with 3 poolings: 32x32 images end at 4x4."""


@_plan(VGG_C["vgg19c"], hidden=512, norm=False)
def vgg19c() -> None:
    """VGG19's layers with 3 poolings: 32x32 images end at 4x4."""


@_plan(VGG_B["vgg8b"], hidden=1024)
def vgg8b() -> None:
    """VGG8B of Nøkland & Eidnes 2019: 4 poolings, a hidden layer."""


@_plan(VGG_B["vgg11b"], hidden=1024)
def vgg11b() -> None:
    """VGG11B of Nøkland & Eidnes 2019: 4 poolings, a hidden layer."""
