"""Multi-layer perceptron."""

from __future__ import annotations

import math

from torch import nn

from layerwise.arguments import DEEPEST, at_least, checks_arguments, share
from layerwise.models.building_blocks import Shape, chain, check_sizes


@checks_arguments
def mlp(
    shape: Shape = (3, 32, 32),
    num_classes: int = 10,
    layers: int = 3,
    width: int = 512,
    batch_norm: bool = False,
    dropout: float = 0.0,
    linear: bool = False,
) -> nn.Sequential:
    """`layers` hidden layers of `width` units, (linear, [BatchNorm,] ReLU, [dropout]) each.

    Args:
        shape: of an image, (C, H, W).
        num_classes: number of classes.
        layers: number of hidden layers.
        width: units in each of them.
        batch_norm: normalise before the ReLU.
        dropout: probability of dropping a unit.
        linear: leave the ReLUs out: a deep linear network.

    Raises:
        InputError: a size below 1 (`layers` below 0); a probability outside [0, 1).
    """
    check_sizes("mlp", shape, num_classes, width=width)
    at_least(0, "mlp", DEEPEST, layers=layers)
    share("mlp", dropout=dropout)
    features = math.prod(shape)
    named: list[tuple[str, nn.Module]] = []
    for i in range(layers):
        parts: list[nn.Module] = [nn.Flatten()] if i == 0 else []
        parts.append(nn.Linear(features, width))
        parts += [nn.BatchNorm1d(width)] if batch_norm else []
        parts += [] if linear else [nn.ReLU(inplace=True)]
        parts += [nn.Dropout(dropout)] if dropout else []
        named.append((f"fc{i + 1}", nn.Sequential(*parts)))
        features = width
    last: list[nn.Module] = [] if layers else [nn.Flatten()]
    return chain([*named, ("classifier", nn.Sequential(*last, nn.Linear(features, num_classes)))])
