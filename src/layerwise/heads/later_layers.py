"""A head of layers that follow in the network, made to fit one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.chain import dry_run
from layerwise.blocks.copies import fresh
from layerwise.blocks.layout import ChannelsLastShape, Shape, as_laid_out
from layerwise.blocks.parts import Layers, has_weight
from layerwise.errors import InputError
from layerwise.heads.head import ChannelsFirst, ChannelsLast, Head, chain, feature_vector
from layerwise.models.resnet import ResidualBlock


@dataclass(frozen=True)
class Placed:
    """A layer of the network, and the shapes of its input and output there, without the batch
    dimension."""

    layer: Layers
    shape: Shape
    after: Shape


class LaterLayers(Head):
    """Some layers of the network with fresh weights, pooling, and a linear classifier.

    Ma et al. 2024 (AugLocal, arXiv:2402.17318). A layer that follows another one than in the
    network is made to fit (`fitted`).

    Args:
        blocks: the network.
        chosen: the layers, in order.
        pool: the head starts by averaging feature maps over windows of `pool` by `pool`, and its
            layers then read maps whose sides are as many times smaller than in the network, rounded
            up. No effect on other outputs, such as tokens.
    """

    def __init__(self, blocks: Blocks, chosen: Sequence[Placed], pool: int = 1):
        self.blocks, self.chosen, self.pool = blocks, chosen, pool

    def __deepcopy__(self, memo: object) -> LaterLayers:
        return self  # the layers are the network's

    def __call__(self, in_shape: Shape, out_shape: Shape) -> Layers:
        made: list[nn.Module] = []
        shape = _smaller(in_shape, self.pool)
        if shape != in_shape:
            made += _pooling(in_shape, shape)
        for placed in self.chosen:
            layer = fitted(replace(placed, shape=_smaller(placed.shape, self.pool)), shape)
            made.append(layer)
            shape = as_laid_out(self._shape_after(layer, shape), placed.after)
        pooling, features = feature_vector(shape, out_shape, 1, "AugLocal")
        read = chain((*pooling, nn.Linear(features, out_shape[-1])))
        return Layers(*made, *(read if type(read) is nn.Sequential else [read]))

    def _shape_after(self, layer: nn.Module, shape: Shape) -> Shape:
        with dry_run(layer):
            h = _weight(layer).new_zeros(2, *shape)
            try:
                return tuple(layer(h, self.blocks.zeros(len(h), h)).shape[1:])
            except RuntimeError as error:
                if self.pool == 1:
                    raise
                raise InputError(
                    f"AugLocal(pool={self.pool}): a layer of a head cannot take maps as small as "
                    f"{shape}: {str(error).splitlines()[0]}; give a smaller pool"
                ) from error


def fitted(placed: Placed, shape: Shape) -> Layers:
    """A copy of a layer with fresh weights, which takes an input of another shape than in the
    network.

    Feature maps that are larger than in the network are halved once, by average pooling, and
    brought to the size there where the layer flattens them. Then a convolution or linear layer
    takes the number of channels that there are. So does a residual block of `models.resnet`, which
    halves the maps by its own stride if that is 1 in the network; its shortcut has no parameters.
    Before any other layer (another residual block) a 1x1 convolution with BatchNorm, or a linear
    layer, brings the channels to the number there.

    Args:
        placed: the layer.
        shape: of its input here, without the batch dimension.
    """
    layer = fresh(placed.layer)
    assert isinstance(layer, Layers)
    own, last = placed.shape, isinstance(placed.shape, ChannelsLastShape)
    before: list[nn.Module] = []
    if len(own) == 1 and len(shape) > 1:
        before, features = feature_vector(shape, own, 1, "AugLocal")
        shape = (features,)
    turned = isinstance(shape, ChannelsLastShape)
    shape, own = _first(shape), _first(own)
    if len(own) == len(shape) == 3 and (size := _size(layer, shape, own)) != shape[1:]:
        if not _halves(layer, shape, size):
            before.append(nn.AdaptiveAvgPool2d(size))
        shape = (shape[0], *size)
    if shape != own and not _takes(layer, shape, last):
        before += _projection(shape, own)
    if before or turned != last:
        before = [*[ChannelsFirst()] * turned, *before, *[ChannelsLast()] * last]
    like = _weight(layer)
    return Layers(*before, *layer).to(like.device, like.dtype)


def _smaller(shape: Shape, times: int) -> Shape:
    """The shape of feature maps with sides so many times smaller; other shapes as they are."""
    if len(shape) != 3:
        return shape
    channels, *sides = _first(shape)
    sides = [-(-side // times) for side in sides]
    if isinstance(shape, ChannelsLastShape):
        return ChannelsLastShape((*sides, channels))
    return (channels, *sides)


def _pooling(shape: Shape, smaller: Shape) -> list[nn.Module]:
    """Modules that average feature maps to smaller ones."""
    if isinstance(shape, ChannelsLastShape):
        return [ChannelsFirst(), nn.AdaptiveAvgPool2d(smaller[:2]), ChannelsLast()]
    return [nn.AdaptiveAvgPool2d(smaller[1:])]


def _first(shape: Shape) -> Shape:
    """(C, H, W), of maps with channels last as well; any other shape as it is."""
    return (shape[-1], *shape[:-1]) if isinstance(shape, ChannelsLastShape) else shape


def _reading(layer: Layers) -> int:
    """The position of the module that reads the layer's input with a weight."""
    return next((k for k, module in enumerate(layer) if has_weight(module)), 0)


def _flattens(layer: Layers) -> bool:
    """Whether the layer flattens its input before it reads it."""
    reading = _reading(layer)
    return reading > 0 and all(isinstance(m, nn.Flatten) for m in layer[:reading])


def _size(layer: Layers, shape: Shape, own: Shape) -> Shape:
    """Height and width that the layer reads."""
    return own[1:] if _flattens(layer) else tuple(map(_halved, shape[1:], own[1:]))


def _halved(here: int, own: int) -> int:
    """Half a side, where it is larger than in the network, but not less than there."""
    return max(own, -(-here // 2)) if here > own else here


def _takes(layer: Layers, shape: Shape, last: bool) -> bool:
    """Replace the module that reads the input by one that takes `shape`, where it is a convolution
    or a linear layer; gives whether it is."""
    reading = _reading(layer)
    module, flattens = layer[reading], _flattens(layer)
    if isinstance(module, ResidualBlock) and shape[0] <= module.out:
        layer[reading] = module.fitted(shape[0], halves=module.stride > 1)
    elif isinstance(module, nn.Conv2d) and module.groups == 1 and reading == 0:
        layer[reading] = _convolution(module, shape[0])
    elif isinstance(module, nn.Linear) and (flattens or reading == 0):
        features = math.prod(shape) if flattens else shape[0 if last else -1]
        layer[reading] = nn.Linear(features, module.out_features, module.bias is not None)
    else:
        return False
    return True


def _convolution(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A convolution like another, of so many input channels."""
    return nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )


def _halves(layer: Layers, shape: Shape, size: Shape) -> bool:
    """Let a residual block halve the maps by its stride; gives whether it does."""
    block = layer[0]
    halved = tuple(-(-side // 2) for side in shape[1:])
    if not isinstance(block, ResidualBlock) or block.stride > 1 or size != halved:
        return False
    layer[0] = block.fitted(block.conv1.in_channels, halves=True)
    return True


def _projection(shape: Shape, own: Shape) -> list[nn.Module]:
    """Modules that bring the channels of feature maps, or the features, to the number there."""
    if len(shape) == 3 and shape[0] != own[0]:
        return [nn.Conv2d(shape[0], own[0], 1, bias=False), nn.BatchNorm2d(own[0])]
    if len(shape) < 3 and shape[-1] != own[-1]:
        return [nn.Linear(shape[-1], own[-1])]
    return []


def _weight(module: nn.Module) -> Tensor:
    return next(module.parameters(), torch.zeros(()))
