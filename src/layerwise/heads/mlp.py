"""A multi-layer perceptron on the block's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from layerwise.arguments import DEEPEST, at_least, check_fields
from layerwise.heads.head import Head, Shape, chain, feature_vector, head_of_maps


@dataclass(frozen=True)
class MLP(Head):
    """[pool,] flatten, `layers` times (linear, ReLU), linear.

    If every pixel has a label: the same layers as 1x1 convolutions at the block's resolution, and
    bilinear interpolation of the class scores to the network's resolution.

    If `pool` averages tokens (T, D), their number may change from batch to batch. Padding, marked
    by the `attention_mask` in the network's inputs, is left out of the means.

    Args:
        layers: the number of hidden layers.
        width: units in each hidden layer.
        pool: average feature maps down to pool x pool (those of videos to pool x pool x pool,
            tokens to `pool`); null keeps every position.

    Raises:
        InputError: a size below 1; when called: shapes that the head does not support.
    """

    layers: int = 1
    width: int = 256
    pool: int | None = 2

    takes_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, "heads.MLP")
        at_least(1, "heads.MLP", DEEPEST, layers=self.layers)
        at_least(1, "heads.MLP", width=self.width, pool=self.pool)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        if len(out_shape) > 2:
            hidden = [self.width] * self.layers
            return head_of_maps(in_shape, out_shape, hidden, True, "heads.MLP")
        layers, features = feature_vector(in_shape, out_shape, self.pool, "heads.MLP")
        for _ in range(self.layers):
            layers += [nn.Linear(features, self.width), nn.ReLU()]
            features = self.width
        return chain([*layers, nn.Linear(features, out_shape[-1])])
