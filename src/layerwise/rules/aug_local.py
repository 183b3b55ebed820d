"""Local learning with heads made of the network's own later layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layerwise.blocks import Blocks
from layerwise.blocks.chain import Shape, dry_run
from layerwise.blocks.copies import fresh
from layerwise.blocks.parts import Layers, has_weight, layers, shapes_of_layers
from layerwise.errors import InputError
from layerwise.heads.head import ChannelsFirst, ChannelsLast, Head, chain, feature_vector
from layerwise.objectives import Classify
from layerwise.objectives.classify import Criterion, cross_entropy
from layerwise.rules.base import LocalRule


class AugLocal(LocalRule):
    """Decoupled greedy learning whose heads are made of layers that follow in the network.

    Ma et al. 2024 (arXiv:2402.17318). The network has layers 0 to L-1 before its classifier (a
    layer: `layerwise.blocks.parts`); block k, of blocks 0 to K-1, ends with layer l. Its head is

        layers round(l + i (L-1-l) / d_k) for i = 1 ... d_k, with fresh weights; pooling; linear
        d_k = max(1, round((1-r) depth + r)),    r = decay k / (K-2)

    or all that follow where these are no more than d_k. With one block it is backpropagation.

    A layer that follows another one than in the network is made to fit. A convolution or linear
    layer takes as many channels as there are; before anything else (a residual block) a 1x1
    convolution with BatchNorm, or a linear layer, brings them to its own. Feature maps that are
    larger than in the network are halved before the layer, by average pooling, and brought to its
    own size where it flattens them.

    Deviations: the authors halve by the stride of the layer itself, and give a residual block a
    projecting shortcut; at depth 1 they have a BatchNorm before the linear layer; they join the
    network's last `depth` modules into one, here the cut decides.

    Args:
        blocks: the network, made with an example.
        depth: layers in the first block's head.
        decay: by how much of the way to 1 the depth falls from the first head to the last.
        criterion: of class scores and labels, a scalar; every block's.

    Raises:
        InputError: a depth below 1, a decay outside [0, 1].
    """

    def __init__(
        self,
        blocks: Blocks,
        depth: int = 2,
        decay: float = 0.5,
        criterion: Criterion = cross_entropy,
    ):
        if depth < 1 or not 0 <= decay <= 1:
            raise InputError(
                f"AugLocal(depth={depth}, decay={decay}): give a depth of at least 1 and a decay "
                "in [0, 1]; with decay 0 all heads are as deep as the first"
            )
        known = isinstance(blocks, Blocks) and blocks.shapes is not None
        given = _later(blocks, depth, decay) if known else [[]] * max(0, len(list(blocks)) - 1)
        heads = [_Auxiliary(blocks, chosen) for chosen in given]
        super().__init__(blocks, [Classify(head, criterion) for head in heads], criterion)


def depths(blocks: int, depth: int, decay: float) -> list[int]:
    """How many layers the head of each block but the last has."""
    ratios = [decay * k / max(1, blocks - 2) for k in range(blocks - 1)]
    return [max(1, round(depth * (1 - r) + r)) for r in ratios]


def choose(l: int, count: int, depth: int) -> list[int]:
    """Which of `count` layers follow layer `l` in its head."""
    left = count - 1 - l
    if depth >= left:
        return list(range(l + 1, count))
    return [round(l + i * left / depth) for i in range(1, depth + 1)]


Placed = tuple[nn.Module, Shape]  # a layer, and the shape of its input in the network


def _later(blocks: Blocks, depth: int, decay: float) -> list[list[Placed]]:
    """The layers of the head of each block but the last."""
    of_blocks = [layers(block) for block in blocks]
    ends = list(itertools.accumulate(map(len, of_blocks)))
    # A head never has a layer of the first block, whose input need not be floating point.
    network: list[Placed] = [(layer, ()) for layer in of_blocks[0]]
    for i in range(1, len(blocks)):
        network += zip(of_blocks[i], shapes_of_layers(blocks, i), strict=True)
    count = len(network) - 1  # without the classifier
    return [
        [network[j] for j in choose(end - 1, count, d)]
        for end, d in zip(ends, depths(len(blocks), depth, decay), strict=False)
    ]


class _Auxiliary(Head):
    """The recipe of a head of these layers."""

    def __init__(self, blocks: Blocks, chosen: Sequence[Placed]):
        self.blocks, self.chosen = blocks, chosen

    def __deepcopy__(self, memo: object) -> _Auxiliary:
        return self  # the layers are the network's

    def __call__(self, in_shape: Shape, out_shape: Shape) -> Layers:
        made: list[nn.Module] = []
        shape = in_shape
        for layer, own in self.chosen:
            fitted = _fitted(fresh(layer), shape, own)
            with dry_run(fitted):
                h = _zeros(fitted, shape)
                shape = tuple(fitted(h, self.blocks.zeros(len(h), h)).shape[1:])
            made.append(fitted)
        pooling, features = feature_vector(shape, out_shape, 1, "AugLocal")
        read = chain((*pooling, nn.Linear(features, out_shape[-1])))
        return Layers(*made, *(read if type(read) is nn.Sequential else [read]))


def _fitted(layer: nn.Module, shape: Shape, own: Shape) -> Layers:
    """A layer that takes `shape` where in the network it takes `own`."""
    assert isinstance(layer, Layers)
    before: list[nn.Module] = []
    last = len(own) == 3 and own[0] == own[1] != own[2]  # (H, W, C)
    reading = next((k for k, module in enumerate(layer) if has_weight(module)), 0)
    flattens = reading > 0 and all(isinstance(m, nn.Flatten) for m in layer[:reading])
    first = layer[reading]
    if len(own) == 1 and len(shape) > 1:
        before, features = feature_vector(shape, own, 1, "AugLocal")
        shape = (features,)
    if last and len(shape) == 3:
        shape, own = (shape[2], *shape[:2]), (own[2], *own[:2])
    if len(own) == len(shape) == 3:
        size = own[1:] if flattens else tuple(map(_halved, shape[1:], own[1:]))
        if size != shape[1:]:
            before.append(nn.AdaptiveAvgPool2d(size))
            shape = (shape[0], *size)
    if shape != own and isinstance(first, nn.Conv2d) and first.groups == 1 and reading == 0:
        layer[reading] = _conv(first, shape[0])
    elif shape != own and isinstance(first, nn.Linear) and (flattens or reading == 0):
        taken = math.prod(shape) if flattens else shape[0 if last else -1]
        layer[reading] = nn.Linear(taken, first.out_features, first.bias is not None)
    elif len(shape) == 3 and shape[0] != own[0]:
        before += [nn.Conv2d(shape[0], own[0], 1, bias=False), nn.BatchNorm2d(own[0])]
    elif len(shape) < 3 and shape[-1] != own[-1]:
        before.append(nn.Linear(shape[-1], own[-1]))
    if last and before:
        before = [ChannelsFirst(), *before, ChannelsLast()]
    like = next(layer.parameters(), torch.zeros(()))
    return Layers(*before, *layer).to(like.device, like.dtype)


def _halved(here: int, own: int) -> int:
    """Once, where it is larger than in the network."""
    return max(own, -(-here // 2)) if here > own else here


def _conv(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
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


def _zeros(module: nn.Module, shape: Shape) -> Tensor:
    like = next(module.parameters(), torch.zeros(()))
    return like.new_zeros(2, *shape)
