"""The projection head of contrastive objectives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import DEEPEST, at_least, check_fields
from layerwise.heads.head import Shape, feature_vector


class Normalized(nn.Module):
    """Scales each row to length 1: (B, D) -> (B, D), in float32 or more, also under autocast."""

    def forward(self, z: Tensor) -> Tensor:
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)


@dataclass(frozen=True)
class Projector:
    """[pool,] flatten, `layers` times (linear, ReLU), linear, scaled to length 1.

    This maps a block's output to a point on the unit sphere, as contrastive objectives need it
    (Chen et al. 2020, arXiv:2002.05709, section 2.1).

    Calling it with the shape of the block's output, without the batch dimension, makes the network:
    (B, *in_shape) -> (B, dim).

    Args:
        dim: the number of the point's coordinates.
        layers: the number of hidden layers; 0 is a linear projection.
        width: units in each hidden layer.
        pool: average feature maps down to pool x pool (tokens to `pool`); null keeps every
            position.

    Raises:
        InputError: a size below 1 (`layers` below 0); when called: a shape that is not a vector,
            feature maps or tokens.
    """

    dim: int = 128
    layers: int = 1
    width: int = 256
    pool: int | None = 2

    def __post_init__(self) -> None:
        check_fields(self, "heads.Projector")
        at_least(0, "heads.Projector", DEEPEST, layers=self.layers)
        at_least(1, "heads.Projector", dim=self.dim, width=self.width, pool=self.pool)

    def __call__(self, in_shape: Shape) -> nn.Sequential:
        layers, features = feature_vector(in_shape, (self.dim,), self.pool, "heads.Projector")
        for _ in range(self.layers):
            layers += [nn.Linear(features, self.width), nn.ReLU()]
            features = self.width
        return nn.Sequential(*layers, nn.Linear(features, self.dim), Normalized())
