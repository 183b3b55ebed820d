"""Three convolutional layers and a small MLP."""

from __future__ import annotations

from typing import get_args

from torch import nn

from layerwise.arguments import at_least, checks_arguments
from layerwise.errors import InputError, choices
from layerwise.models.building_blocks import (
    Norm,
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
from layerwise.models.patches import CutPatches, PatchWise, grid_of


@checks_arguments
def basic_cnn(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    channels: int = 128,
    kernel_size: int = 5,
    hidden: int = 256,
    skip: int = 0,
    patch: int | None = None,
    stride: int | None = None,
    padding_mode: Padding = "zeros",
    norm: Norm = "batch",
) -> nn.Sequential:
    """3 x (convolution, BatchNorm, ReLU, 2x2 max pooling), then an MLP with one hidden layer.

    Args:
        shape: of an image, (C, H, W).
        num_classes: number of classes.
        channels: of each convolution.
        kernel_size: of each convolution; the resolution is kept.
        hidden: units of the MLP's hidden layer.
        skip: leave out this many of the first convolutions but keep their pooling; this shows how
            well the last layers do alone.
        patch: side in pixels of overlapping patches that are encoded separately, as in Greedy
            InfoMax (Löwe et al. 2019, arXiv:1905.11786); only the MLP sees them together. null: no
            patches.
        stride: distance from one patch to the next, pixels; null for half a patch.
        padding_mode: what convolutions read beyond the edge: zeros, or circular for the pixels of
            the opposite edge.
        norm: batch, or layer: over the channels and positions of one image or patch, so that
            nothing passes between patches.

    Raises:
        InputError: a size below 1; images or patches are too small for 3 poolings; no convolution
            is left; a patch is larger than the image, or its side is not a multiple of 8; circular
            padding of more pixels than there are.
    """
    check_sizes("basic_cnn", shape, num_classes, channels=channels, kernel_size=kernel_size)
    at_least(1, "basic_cnn", hidden=hidden, patch=patch, stride=stride)
    rows = columns = 1
    cut: list[tuple[str, nn.Module]] = []
    if patch is not None:
        if patch % 8:
            raise InputError(
                f"basic_cnn(patch={patch}): 3 poolings halve a patch's side; give a multiple of 8"
            )
        stride = stride or patch // 2
        rows, columns = grid_of(shape, patch, stride, "basic_cnn")
        cut.append(("patches", CutPatches(patch, stride)))
        shape = (shape[0], rows * patch, columns * patch)
    elif stride is not None:
        raise InputError(f"basic_cnn(stride={stride}): there are no patches; give patch as well")
    height, width = halved(shape, 3, "basic_cnn")
    check_padding("basic_cnn", padding_mode)
    if norm not in get_args(Norm):
        raise InputError(f"basic_cnn(norm={norm!r}): {choices(norm, get_args(Norm))}")
    if padding_mode == "circular" and kernel_size // 2 > (least := min(height, width) * 2):
        raise InputError(
            f"basic_cnn(kernel_size={kernel_size}, padding_mode='circular'): the third convolution "
            f"reads {kernel_size // 2} pixels beyond the edge of maps of {least}; give a kernel of "
            f"at most {2 * least + 1}"
        )
    named = pooled_image(checked_skip(skip, 3, "basic_cnn"))
    for number in range(skip + 1, 4):
        before = channels if number > skip + 1 else shape[0]
        layer = conv_layer(
            before, channels, kernel_size, pool=True, padding_mode=padding_mode, norm=norm
        )
        named.append((f"conv{number}", layer))
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )
    if patch is not None:
        named = [(name, PatchWise(layer, rows, columns)) for name, layer in named]
    return chain([*cut, *named, ("classifier", classifier)])
