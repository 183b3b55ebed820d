"""What every head's recipe shares: from a block's output to a feature vector."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from layerwise.errors import InputError

Shape = tuple[int, ...]


class Head(ABC):
    """The recipe of an auxiliary network: widths and depths, but no input size.

    Calling it with shapes (without batch dimension) makes the network:

        in_shape    (D,) a vector; (C, H, W) feature maps; (H, W, C) feature maps of a network that
                    keeps channels last, told by H = W; (T, D) tokens
        out_shape   (classes,), or (T, classes) where every token has its own label

    Any function of the same two arguments serves as a head.
    """

    @abstractmethod
    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """The auxiliary network: (B, *in_shape) -> (B, *out_shape)."""


class ChannelsFirst(nn.Module):
    """(B, H, W, C) -> (B, C, H, W)."""

    def forward(self, h: Tensor) -> Tensor:
        return h.permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """(B, C, H, W) -> (B, H, W, C)."""

    def forward(self, h: Tensor) -> Tensor:
        return h.permute(0, 2, 3, 1)


class PoolTokens(nn.Module):
    """Average neighbouring tokens: (B, T, D) -> (B, D, tokens), for any T."""

    def __init__(self, tokens: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool1d(tokens)

    def forward(self, h: Tensor) -> Tensor:
        return self.pool(h.transpose(1, 2))


def one_label(out_shape: Shape, asked_by: str) -> None:
    """Refuse a network that does not give class scores for a whole sample."""
    if len(out_shape) != 1:
        raise InputError(
            f"{asked_by}: the network gives {out_shape} for each sample; this head predicts one "
            "label per sample, (classes,): give a function that makes your own head"
        )


def feature_maps(in_shape: Shape, asked_by: str) -> tuple[list[nn.Module], Shape]:
    """Layers that bring a block's output to (B, C, H, W), and (C, H, W)."""
    if len(in_shape) != 3:
        raise InputError(
            f"{asked_by}: a block gives {in_shape} for each sample, which is not feature maps "
            "(C, H, W); heads.Linear and heads.MLP also take vectors (D,) and tokens (T, D)"
        )
    first, second, third = in_shape
    if first == second != third:  # (H, W, C) with square maps
        return [ChannelsFirst()], (third, first, second)
    return [], in_shape


def fewer_positions(shape: Shape, features: int) -> Shape:
    """(C, H, W) averaged down until it has at most `features` numbers: height and width are halved
    in turn, height first, rounded up (Nøkland & Eidnes 2019); (1, 1) is the least."""
    channels, height, width = shape
    rows, columns = height, width
    for k in itertools.count(1):
        if channels * rows * columns <= features or (rows, columns) == (1, 1):
            return channels, rows, columns
        rows = math.ceil(height / 2**k)
        if channels * rows * columns > features:
            columns = math.ceil(width / 2**k)
    raise AssertionError


def feature_vector(
    in_shape: Shape, out_shape: Shape, pool: int | None, asked_by: str
) -> tuple[list[nn.Module], int]:
    """Layers that bring a block's output to one vector per label, and the vector's length.

    `pool` averages feature maps down to pool x pool, tokens down to `pool`; None keeps all.
    """
    if len(out_shape) == 2:  # a label for every token: each token is a vector already
        if len(in_shape) != 2:
            raise InputError(
                f"{asked_by}: the network gives {out_shape} for each sample, one label per token, "
                f"but a block gives {in_shape}, which is not (tokens, features)"
            )
        return [], in_shape[-1]
    one_label(out_shape, asked_by)
    if len(in_shape) == 1:
        return [], in_shape[0]
    if len(in_shape) == 2:
        tokens, features = in_shape
        if pool is None:
            return [nn.Flatten()], tokens * features
        return [PoolTokens(pool), nn.Flatten()], pool * features
    layers, (channels, height, width) = feature_maps(in_shape, asked_by)
    if pool is not None and (height > pool or width > pool):
        height, width = min(pool, height), min(pool, width)
        layers.append(nn.AdaptiveAvgPool2d((height, width)))
    return [*layers, nn.Flatten()], channels * height * width


def positive(asked_by: str, **sizes: int | None) -> None:
    """Refuse sizes below one."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(f"{asked_by}({name}={size}): give at least 1")


def refuse_class(recipe: object, asked_by: str) -> None:
    """Refuse a recipe's class where the recipe itself is meant."""
    if isinstance(recipe, type):
        raise InputError(
            f"{asked_by}: got the class {recipe.__name__}; give a recipe: {recipe.__name__}()"
        )
