"""Layers and checks that several of the networks share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from layerwise.arguments import at_least
from layerwise.errors import InputError, choices

Shape = tuple[int, int, int]  # (C, H, W)
Window = tuple[int]  # (T,) tokens
Padding = Literal["zeros", "circular"]  # what convolutions read beyond the edge
Norm = Literal["batch", "layer"]


def chain(named: list[tuple[str, nn.Module]]) -> nn.Sequential:
    """A network that runs named modules one after the other."""
    return nn.Sequential(OrderedDict(named))


def check_sizes(
    call: str, shape: Sequence[int], num_classes: int, axes: int = 3, **sizes: int | None
) -> None:
    """Check that a sample's shape, the number of classes and further sizes are at least 1.

    Args:
        call: the network, for errors.
        shape: of a sample, such as (C, H, W).
        num_classes: number of classes.
        axes: the number of axes of a sample.
        sizes: of any other kind; None is not looked at.

    Raises:
        InputError: one is not; a shape of other axes.
    """
    if len(shape) != axes:
        raise InputError(f"{call}(shape={tuple(shape)}): give the shape of an image, (C, H, W)")
    if min(shape, default=0) < 1:
        raise InputError(f"{call}(shape={tuple(shape)}): give sizes of at least 1")
    at_least(1, call, num_classes=num_classes, **sizes)


def conv_layer(
    channels: int,
    out: int,
    kernel_size: int = 3,
    *,
    pool: bool = False,
    dropout: float = 0.0,
    padding_mode: Padding = "zeros",
    norm: Norm = "batch",
) -> nn.Sequential:
    """Convolution that keeps the resolution, BatchNorm or layer normalisation, ReLU, [2x2 max
    pooling,] [dropout]."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            channels, out, kernel_size, padding="same", bias=False, padding_mode=padding_mode
        ),
        nn.BatchNorm2d(out) if norm == "batch" else nn.GroupNorm(1, out),
        nn.ReLU(inplace=True),
    ]
    if pool:
        layers.append(nn.MaxPool2d(2))
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


def halved(shape: Shape, times: int, asked_by: str) -> tuple[int, int]:
    """Height and width of images after `times` 2x2 poolings.

    Args:
        shape: of an image, (C, H, W).
        times: number of poolings.
        asked_by: the network, for errors.

    Raises:
        InputError: nothing would be left of the images.
    """
    _, height, width = shape
    if min(height, width) < 2**times:
        raise InputError(
            f"{asked_by}(shape={tuple(shape)}): {times} poolings leave nothing of {height}x{width} "
            f"images; give images of at least {2**times}x{2**times}, or a network with fewer"
        )
    return height >> times, width >> times


def checked_skip(skip: int, layers: int, asked_by: str) -> int:
    """Check that at least one of `layers` convolutions is left after leaving out `skip`.

    Raises:
        InputError: none is left.
    """
    if not 0 <= skip < layers:
        raise InputError(
            f"{asked_by}(skip={skip}): it has {layers} convolutions, one of which must stay; give "
            f"0 to {layers - 1}"
        )
    return skip


def check_padding(asked_by: str, padding_mode: str) -> None:
    """Check the name of what convolutions read beyond the edge.

    Raises:
        InputError: it is not known.
    """
    if padding_mode not in get_args(Padding):
        raise InputError(
            f"{asked_by}(padding_mode={padding_mode!r}): {choices(padding_mode, get_args(Padding))}"
        )


def pooled_image(times: int) -> list[tuple[str, nn.Module]]:
    """One max pooling that stands for `times` 2x2 poolings; nothing if `times` is 0."""
    return [("pool", nn.MaxPool2d(2**times))] if times else []


class MeanPool2d(nn.AdaptiveAvgPool2d):
    """The mean of each feature map, (B, C, H, W) -> (B, C, 1, 1).

    Its values are those of `nn.AdaptiveAvgPool2d(1)`, bit for bit. If the maps are channels-last in
    memory, so is its gradient; PyTorch's is not, and every layer before the pooling copies it.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, input: Tensor) -> Tensor:
        if input.is_contiguous() or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        return input.permute(0, 2, 3, 1).mean((1, 2))[:, :, None, None]
