"""The base of all heads, and the layers that they share, from a block's output to a vector."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.blocks.layout import ChannelsLastShape, Shape
from layerwise.errors import InputError
from layerwise.inputs import Inputs
from layerwise.models.building_blocks import MeanPool2d


class Head(ABC):
    """The recipe of an auxiliary network: widths and depths, but no input size.

    Calling it with shapes (without the batch dimension) makes the network:

        in_shape    (D,) a vector; (C, H, W) feature maps; (C, F, H, W) maps of a video of F frames;
                    `ChannelsLastShape((H, W, C))`, or with (F, H, W, C), maps of a network that
                    keeps channels last, as `Blocks.shapes` has them; (T, D) tokens
        out_shape   (classes,); (T, classes) if every token has its own label; (classes, H, W) or
                    (classes, F, H, W) if every pixel has its own label

    Any function of the same two arguments can be used as a head. A module whose `reads_inputs` is
    true is called as `head(h, inputs)`, with the network's inputs; all others as `head(h)`.

    Attributes:
        takes_tokens: whether the head can also be used on features of one-dimensional convolutions,
            (D, T): an objective then transposes them and gives it tokens, (T, D).
    """

    takes_tokens: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Module:
        """The auxiliary network: (B, *in_shape) -> (B, *out_shape).

        Raises:
            InputError: shapes that the head does not support.
        """


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
    """Averages neighbouring tokens: (B, T, D) -> (B, D, tokens), for any T.

    A mask (B, T) is true for tokens that are not padding. With a mask, a row with n such tokens
    gives the same means as these n tokens without padding: the i-th mean is over those numbered
    from floor(i n / tokens) to below ceil((i + 1) n / tokens), as in `nn.AdaptiveAvgPool1d`. A row
    that is all padding gives 0.
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
        h = h.masked_fill(~mask.unsqueeze(2), 0)  # padding may hold anything, even NaN
        return (share_BPT.to(h.dtype) @ h).transpose(1, 2)


class OfTokens(nn.Sequential):
    """Layers whose first one, `PoolTokens`, averages tokens and leaves padding out of the means."""

    reads_inputs = True

    def forward(self, input: Tensor, inputs: Inputs = None) -> Tensor:
        h, mask = input, padding_mask(inputs, input)
        for layer in self:
            h = layer(h, mask) if isinstance(layer, PoolTokens) else layer(h)
        return h


def chain(layers: Sequence[nn.Module]) -> nn.Sequential:
    """The layers one after the other, (B, ...) -> (B, ...).

    If the first layer averages tokens, it gets the padding mask.
    """
    masked = bool(layers) and isinstance(layers[0], PoolTokens)
    return OfTokens(*layers) if masked else nn.Sequential(*layers)


def padding_mask(inputs: Inputs, h: Tensor) -> Tensor | None:
    """The `attention_mask` in a network's inputs, (B, T) bool: true for tokens, false for padding.

    Args:
        inputs: the network's inputs. Only a dict can hold a mask.
        h: tokens, (B, T, D).

    Returns:
        The mask; None if there is none, or it is for another number of rows or tokens than h.
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or h.dim() != 3 or mask.shape != h.shape[:2]:
        return None
    return mask.to(h.device) != 0


class Maps(nn.Module):
    """Interpolation, (B, C, h, w) -> (B, C, H, W): bilinear for images, trilinear for videos.

    Maps of another size than the example's are scaled by the same factors.

    Args:
        before: the size in the example, (h, w) or (f, h, w).
        after: the size that it becomes, (H, W) or (F, H, W).
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
        hidden: the channels of each convolution but the last.
        bias: whether the last convolution has a bias.
        asked_by: the call, for errors.

    Raises:
        InputError: the block's output is not maps with the same number of axes.
    """
    if len(in_shape) != len(out_shape):
        raise InputError(
            f"{asked_by}: the network gives {out_shape} for each sample, class scores for every "
            f"pixel, but a block gives {in_shape}, which is not maps with as many axes; give a "
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
    """Check that the network predicts one label per sample.

    Raises:
        InputError: it does not.
    """
    if len(out_shape) != 1:
        raise InputError(
            f"{asked_by}: the network gives {out_shape} for each sample, but this head predicts "
            "one label per sample, (classes,); give a function that makes your own head"
        )


def feature_maps(
    in_shape: Shape, asked_by: str, axes: tuple[int, ...] = (3,)
) -> tuple[list[nn.Module], Shape]:
    """Layers that bring a block's output to the order (B, C, H, W), or (B, C, F, H, W) for videos.

    Args:
        in_shape: the shape of the block's output, without the batch dimension.
        asked_by: the call, for errors.
        axes: how many axes `in_shape` may have: 3 for images, 4 for videos.

    Returns:
        The layers, and the shape that they give, without the batch dimension.

    Raises:
        InputError: the block's output is not feature maps.
    """
    if len(in_shape) not in axes:
        raise InputError(
            f"{asked_by}: a block gives {in_shape} for each sample, which is not feature maps "
            "(C, H, W); heads.Linear and heads.MLP also take vectors (D,), tokens (T, D) and "
            "feature maps of videos (C, F, H, W)"
        )
    if not isinstance(in_shape, ChannelsLastShape):
        return [], in_shape
    first = ChannelsFirst() if len(in_shape) == 3 else VideoChannelsFirst()
    return [first], (in_shape[-1], *in_shape[:-1])


def fewer_positions(shape: Shape, features: int) -> Shape:
    """The shape to which to average feature maps (C, H, W) so that `features` numbers remain.

    Height and width are halved in turn, height first and rounded up, until at most `features`
    numbers remain (Nøkland & Eidnes 2019), or one position.
    """
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

    Args:
        in_shape, out_shape: the shapes of the block's and the network's output, as in `Head`.
        pool: average feature maps down to pool x pool, those of videos to pool x pool x pool, and
            tokens to `pool`; None keeps all positions.
        asked_by: the call, for errors.

    Raises:
        InputError: shapes from which no such vectors can be made.
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
        if size == [1, 1]:
            layers.append(MeanPool2d())
        else:
            pooling = nn.AdaptiveAvgPool2d if len(size) == 2 else nn.AdaptiveAvgPool3d
            layers.append(pooling(tuple(size)))  # type: ignore[arg-type]
    return [*layers, nn.Flatten()], channels * math.prod(size)


def refuse_class(recipe: object, asked_by: str) -> None:
    """Check that a recipe is not a class, given without the parentheses that make the recipe.

    Raises:
        InputError: it is.
    """
    if isinstance(recipe, type):
        raise InputError(
            f"{asked_by}: got the class {recipe.__name__}; give a recipe: {recipe.__name__}()"
        )
