"""What every head's recipe shares: from a block's output to a feature vector."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.errors import InputError
from layerwise.inputs import Inputs

Shape = tuple[int, ...]


class Head(ABC):
    """The recipe of an auxiliary network: widths and depths, but no input size.

    Calling it with shapes (without batch dimension) makes the network:

        in_shape    (D,) a vector; (C, H, W) feature maps; (H, W, C) feature maps of a network that
                    keeps channels last, told by H = W; (C, F, H, W) maps of a video of F frames,
                    or (F, H, W, C), told by H = W != C; (T, D) tokens
        out_shape   (classes,); (T, classes) where every token has its own label; (classes, H, W) or
                    (classes, F, H, W) where every pixel has

    Any function of the same two arguments serves as a head. A module whose `reads_inputs` is true
    is called `head(h, inputs)`, with what the network was given, all others `head(h)`.

    Attributes:
        takes_tokens: whether it also reads features of one-dimensional convolutions, (D, T): an
            objective then turns them round and hands it (T, D).
    """

    takes_tokens: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """The auxiliary network: (B, *in_shape) -> (B, *out_shape)."""


class ChannelsFirst(nn.Module):
    """(B, H, W, C) -> (B, C, H, W)."""

    def forward(self, h: Tensor) -> Tensor:
        return h.permute(0, 3, 1, 2)


class VideoChannelsFirst(nn.Module):
    """(B, F, H, W, C) -> (B, C, F, H, W)."""

    def forward(self, h: Tensor) -> Tensor:
        return h.permute(0, 4, 1, 2, 3)


class ChannelsLast(nn.Module):
    """(B, C, H, W) -> (B, H, W, C)."""

    def forward(self, h: Tensor) -> Tensor:
        return h.permute(0, 2, 3, 1)


class PoolTokens(nn.Module):
    """Average neighbouring tokens: (B, T, D) -> (B, D, tokens), for any T.

    With a mask (B, T), true for what is no padding, a row gives what its n tokens that are no
    padding would give alone: the i-th mean is over those numbered from floor(i n / tokens) to below
    ceil((i + 1) n / tokens), as in `nn.AdaptiveAvgPool1d`. A row of padding alone gives 0.
    """

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens
        self.pool = nn.AdaptiveAvgPool1d(tokens)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return self.pool(h.transpose(1, 2))
        n_B11 = mask.sum(1).view(-1, 1, 1)
        number_B1T = (mask.cumsum(1) - 1).unsqueeze(1)
        i_P1 = torch.arange(self.tokens, device=h.device).unsqueeze(1)
        first = i_P1 * n_B11 // self.tokens
        end = -(-(i_P1 + 1) * n_B11 // self.tokens)
        inside_BPT = mask.unsqueeze(1) & (number_B1T >= first) & (number_B1T < end)
        share_BPT = inside_BPT.to(h.dtype) / inside_BPT.sum(2, keepdim=True).clamp(min=1)
        h = h.masked_fill(~mask.unsqueeze(2), 0)  # padding may hold anything, also no number
        return (share_BPT.to(h.dtype) @ h).transpose(1, 2)


class OfTokens(nn.Sequential):
    """Layers of which the first averages tokens and leaves padding out of its means."""

    reads_inputs = True

    def forward(self, input: Tensor, inputs: Inputs = None) -> Tensor:
        h, mask = input, padding_mask(inputs, input)
        for layer in self:
            h = layer(h, mask) if isinstance(layer, PoolTokens) else layer(h)
        return h


def chain(layers: Sequence[nn.Module]) -> nn.Sequential:
    """The layers one after the other, (B, ...) -> (B, ...); a padding mask goes to the first, where
    that averages tokens."""
    masked = bool(layers) and isinstance(layers[0], PoolTokens)
    return OfTokens(*layers) if masked else nn.Sequential(*layers)


def padding_mask(inputs: Inputs, h: Tensor) -> Tensor | None:
    """Which tokens are no padding, (B, T) bool: the `attention_mask` of a network's inputs.

    Args:
        inputs: what the network was given. Only a dict holds a mask.
        h: tokens, (B, T, D). A mask for another number of rows or of tokens is none of theirs.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or h.dim() != 3 or mask.shape != h.shape[:2]:
        return None
    return mask.to(h.device) != 0


class Maps(nn.Module):
    """(B, C, h, w) -> (B, C, H, W), of any size: bilinear interpolation, of videos trilinear; of
    another size than the example's by the same factors.

    Args:
        before: the size in the example, (h, w) or (f, h, w).
        after: what it becomes there.
    """

    def __init__(self, before: Shape, after: Shape):
        super().__init__()
        self.factors = tuple(b / a for a, b in zip(before, after, strict=True))
        self.mode = "bilinear" if len(before) == 2 else "trilinear"

    def forward(self, h: Tensor) -> Tensor:
        size = [round(s * f) for s, f in zip(h.shape[2:], self.factors, strict=True)]
        return F.interpolate(h, size, mode=self.mode)

    def extra_repr(self) -> str:
        return f"factors={self.factors}, mode={self.mode!r}"


def head_of_maps(
    in_shape: Shape, out_shape: Shape, hidden: Sequence[int], bias: bool, asked_by: str
) -> nn.Sequential:
    """Class scores for every pixel: 1x1 convolutions with ReLU between them, then `Maps`.

    Args:
        in_shape: (C, h, w) or (C, f, h, w), or with channels last, as in `Head`.
        out_shape: (classes, H, W) or (classes, F, H, W).
        hidden: channels of each convolution but the last.
        bias: of the last.
        asked_by: the call, for errors.
    """
    if len(in_shape) != len(out_shape):
        raise InputError(
            f"{asked_by}: the network gives {out_shape} for each sample, class scores for every "
            f"pixel, but a block gives {in_shape}, which is not maps of as many axes: give a "
            "function that makes your own head"
        )
    layers, maps = feature_maps(in_shape, asked_by, (3, 4))
    convolution = nn.Conv2d if len(maps) == 3 else nn.Conv3d
    sizes = [maps[0], *hidden, out_shape[0]]
    for k, (features, out) in enumerate(itertools.pairwise(sizes)):
        last = k == len(sizes) - 2
        layers.append(convolution(features, out, 1, bias=bias or not last))
        layers += [] if last else [nn.ReLU()]
    if maps[1:] != out_shape[1:]:
        layers.append(Maps(maps[1:], out_shape[1:]))
    return nn.Sequential(*layers)


def one_label(out_shape: Shape, asked_by: str) -> None:
    """Refuse a network that does not give class scores for a whole sample."""
    if len(out_shape) != 1:
        raise InputError(
            f"{asked_by}: the network gives {out_shape} for each sample; this head predicts one "
            "label per sample, (classes,): give a function that makes your own head"
        )


def feature_maps(
    in_shape: Shape, asked_by: str, axes: tuple[int, ...] = (3,)
) -> tuple[list[nn.Module], Shape]:
    """Layers that bring a block's output to (B, C, H, W), and (C, H, W); where `axes` are 4, to
    (B, C, F, H, W), and (C, F, H, W)."""
    if len(in_shape) not in axes:
        raise InputError(
            f"{asked_by}: a block gives {in_shape} for each sample, which is not feature maps "
            "(C, H, W); heads.Linear and heads.MLP also take vectors (D,), tokens (T, D) and maps "
            "of videos (C, F, H, W)"
        )
    if len(in_shape) == 4:
        frames, height, width, channels = in_shape
        if height == width != channels:  # (F, H, W, C) with square maps
            return [VideoChannelsFirst()], (channels, frames, height, width)
        return [], in_shape
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

    `pool` averages feature maps down to pool x pool, of a video to pool x pool x pool, tokens down
    to `pool`; None keeps all.
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
    layers, (channels, *size) = feature_maps(in_shape, asked_by, (3, 4))
    if pool is not None and any(side > pool for side in size):
        size = [min(pool, side) for side in size]
        pooling = nn.AdaptiveAvgPool2d if len(size) == 2 else nn.AdaptiveAvgPool3d
        layers.append(pooling(tuple(size)))  # type: ignore[arg-type]
    return [*layers, nn.Flatten()], channels * math.prod(size)


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
