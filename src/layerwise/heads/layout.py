"""Which axis of a block's output holds its features."""

from __future__ import annotations

from torch import nn

FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.LazyConv1d, nn.LazyConvTranspose1d)


def channels_first(block: nn.Module) -> bool:
    """Whether an output of two axes of this block is (D, T), as one-dimensional convolutions give
    it, and not (T, D).

    Shapes do not tell the two apart. They are told by the last module, in the order of
    registration, whose weight maps features: whether it is a one-dimensional convolution. A block
    that has none, and one that turns a convolution's output round, are taken by that, too; such a
    network is better given its own head and criterion.
    """
    maps = [m for m in block.modules() if _maps_features(m)]
    return bool(maps) and isinstance(maps[-1], FIRST)


def _maps_features(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    recurrent = isinstance(module, nn.RNNBase | nn.MultiheadAttention)
    return recurrent or (isinstance(weight, nn.Parameter) and weight.dim() > 1)
