"""From a block's output to a point on the unit sphere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.heads.head import Shape, feature_vector, positive


class Normalized(nn.Module):
    """(B, D) of length 1 each; in float32 or more, also under autocast."""

    def forward(self, z: Tensor) -> Tensor:
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)


@dataclass(frozen=True)
class Projector:
    """[pool,] flatten, `layers` times (linear, ReLU), linear, length 1: the projection head of
    contrastive objectives (Chen et al. 2020, arXiv:2002.05709, section 2.1).

    Calling it with the block's output shape, without batch dimension, makes the network:
    (B, *in_shape) -> (B, dim).

    Args:
        dim: of the point.
        layers: how many hidden layers; 0 is a linear projection.
        width: units in each hidden layer.
        pool: average feature maps down to pool x pool (tokens down to `pool`) before; null keeps
            every position.
    """

    dim: int = 128
    layers: int = 1
    width: int = 256
    pool: int | None = 2

    def __post_init__(self) -> None:
        positive("heads.Projector", dim=self.dim, width=self.width, pool=self.pool)
        positive("heads.Projector", layers=self.layers or None)

    def __call__(self, in_shape: Shape) -> nn.Sequential:
        layers, features = feature_vector(in_shape, (self.dim,), self.pool, "heads.Projector")
        for _ in range(self.layers):
            layers += [nn.Linear(features, self.width), nn.ReLU()]
            features = self.width
        return nn.Sequential(*layers, nn.Linear(features, self.dim), Normalized())
