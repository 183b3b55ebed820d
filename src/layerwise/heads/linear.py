"""A linear classifier on the block's output."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from layerwise.heads.head import Head, Shape, feature_vector, positive


@dataclass(frozen=True)
class Linear(Head):
    """[pool,] flatten, linear.

    Args:
        pool: average feature maps down to pool x pool (tokens down to `pool`) before; null keeps
            every position.
    """

    pool: int | None = 2

    def __post_init__(self) -> None:
        positive("heads.Linear", pool=self.pool)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        layers, features = feature_vector(in_shape, out_shape, self.pool, "heads.Linear")
        return nn.Sequential(*layers, nn.Linear(features, out_shape[-1]))
