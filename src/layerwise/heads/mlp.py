"""A multi-layer perceptron on the block's output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from layerwise.heads.head import Head, Shape, feature_vector, positive


@dataclass(frozen=True)
class MLP(Head):
    """[pool,] flatten, `layers` times (linear, ReLU), linear.

    Args:
        layers: how many hidden layers.
        width: units in each hidden layer.
        pool: average feature maps down to pool x pool (tokens down to `pool`) before; null keeps
            every position.
    """

    layers: int = 1
    width: int = 256
    pool: int | None = 2

    def __post_init__(self) -> None:
        positive("heads.MLP", layers=self.layers, width=self.width, pool=self.pool)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        layers, features = feature_vector(in_shape, out_shape, self.pool, "heads.MLP")
        for _ in range(self.layers):
            layers += [nn.Linear(features, self.width), nn.ReLU()]
            features = self.width
        return nn.Sequential(*layers, nn.Linear(features, out_shape[-1]))
