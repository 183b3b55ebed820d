"""A linear classifier on the block's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from layerwise.arguments import at_least, check_fields
from layerwise.heads.head import (
    Head,
    Shape,
    chain,
    feature_maps,
    feature_vector,
    fewer_positions,
    head_of_maps,
)


@dataclass(frozen=True)
class Linear(Head):
    """[pool,] flatten, linear.

    If every pixel has a label: a 1x1 convolution at the block's resolution, and bilinear
    interpolation of the class scores to the network's resolution.

    If `pool` averages tokens (T, D), their number may change from batch to batch. Padding, marked
    by the `attention_mask` in the network's inputs, is left out of the means.

    Args:
        pool: average feature maps down to pool x pool (those of videos to pool x pool x pool,
            tokens to `pool`); null keeps every position.
        features: instead of `pool`, average feature maps down until at most this many numbers are
            left; height and width are halved in turn, height first. This is the local classifier
            of Nøkland & Eidnes 2019 (arXiv:1901.06656), who take 2048 or 4096.
        bias: whether the classifier has a bias.
        fixed: whether its weights stay as they were drawn, and only the block learns (Mostafa et
            al. 2018, arXiv:1711.06756).

    Raises:
        InputError: a size below 1; when called: shapes that the head does not support.
    """

    pool: int | None = 2
    features: int | None = None
    bias: bool = True
    fixed: bool = False

    takes_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, "heads.Linear")
        at_least(1, "heads.Linear", pool=self.pool, features=self.features)

    def __call__(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        return self._learning(in_shape, out_shape).requires_grad_(not self.fixed)

    def _learning(self, in_shape: Shape, out_shape: Shape) -> nn.Sequential:
        """The classifier, with weights that learn."""
        if len(out_shape) > 2:
            return head_of_maps(in_shape, out_shape, (), self.bias, "heads.Linear")
        if self.features is not None and len(in_shape) == 3 and len(out_shape) == 1:
            layers, maps = feature_maps(in_shape, "heads.Linear")
            channels, height, width = fewer_positions(maps, self.features)
            if (height, width) != maps[1:]:
                layers.append(nn.AdaptiveAvgPool2d((height, width)))
            linear = nn.Linear(channels * height * width, out_shape[-1], bias=self.bias)
            return nn.Sequential(*layers, nn.Flatten(), linear)
        layers, features = feature_vector(in_shape, out_shape, self.pool, "heads.Linear")
        return chain([*layers, nn.Linear(features, out_shape[-1], bias=self.bias)])
