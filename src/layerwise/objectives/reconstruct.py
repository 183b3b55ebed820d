"""Reconstruct the network's input, as it is or shifted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import checks_arguments
from layerwise.errors import InputError, choices
from layerwise.heads.decoder import Decoder, Transposed
from layerwise.heads.head import refuse_class
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.normalization import SYMMETRIC, Normalization
from layerwise.objectives.objective import Objective, Site, between

# Means over all elements. For "bce" the target lies in 0..1 and the decoder's output are logits.
DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss, "bce": F.binary_cross_entropy_with_logits}


class Reconstruct(Objective):
    """Predict the network's input, an image, from a block's output through a decoder.

    The target is the image as the network sees it: augmented and normalised. With a shift the
    target is rolled along height and width, around the edges (`torch.roll`). The shift grows with
    every block, so that later blocks have harder tasks. Block i of K, except the last, has

        first + (last - first) i / (K - 2)

    pixels, rounded to the nearest integer, halves upwards. If there is only one such block it has
    `first`. The last block, if it has this objective, has `last`. If the decoder's output is
    smaller than the image, the target is averaged to its resolution.

    Args:
        decoder: recipe of the auxiliary network.
        distance: between target and prediction, mean over all elements: "l1" absolute, "l2"
            squared, "bce" the binary cross-entropy, in nats, between the image in 0..1 and the
            sigmoid of the decoder's output (InfoPro: Wang et al. 2021, arXiv:2101.10832).
        shift: (first, last), in pixels; negative numbers roll towards the top left.
        before_pooling: read the block's output before the pooling that ends it, if one does, which
            has a higher resolution.
        normalization: how the images were normalised; "bce" undoes it. On the command line it is
            taken from the data.

    Raises:
        InputError: another distance; a shift that is not two whole numbers; when it is built, a
            network whose input is not an image (C, H, W); in a step, an input that is not floating
            point.
    """

    @checks_arguments
    def __init__(
        self,
        decoder: Decoder = Transposed(),
        distance: Literal["l1", "l2", "bce"] = "l2",
        shift: tuple[int, int] | None = None,
        before_pooling: bool = True,
        normalization: Normalization = SYMMETRIC,
    ):
        super().__init__()
        refuse_class(decoder, "Reconstruct(decoder=...)")
        if distance not in DISTANCES:
            raise InputError(f"Reconstruct(distance={distance!r}): {choices(distance, DISTANCES)}")
        if shift is not None and not _two_pixels(shift):
            raise InputError(
                f"Reconstruct(shift={shift}): give two whole numbers of pixels, for the first and "
                "the last block, such as (5, 16)"
            )
        self.decoder: nn.Module = nn.Identity()
        self.recipe = decoder
        self.distance = distance
        self.shift = shift
        self.before_pooling = before_pooling
        self.normalization = normalization
        self.pixels = 0

    def build(self, site: Site) -> None:
        if len(site.input_shape) != 3:
            raise InputError(
                f"Reconstruct: the network takes {site.input_shape} for each sample, which is not "
                "an image (C, H, W) to reconstruct; leave this objective out"
            )
        if self.shift is not None:
            self.pixels = shift_at(site.index, site.blocks, *self.shift)
        shape = site.unpooled_shape if self.before_pooling else site.shape
        self.decoder = self.recipe(shape, site.input_shape)

    @property
    def reads_unpooled(self) -> bool:
        return self.before_pooling

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        target, output = self._decoded(activity, batch)
        return DISTANCES[self.distance](output, target)

    def illustrate(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target and prediction, both (B, C, H, W), in float32 or more, also under autocast."""
        target, output = self._decoded(activity, batch)
        if self.distance == "bce":
            return self.normalization(target), self.normalization(output.sigmoid())
        return target, output

    def _decoded(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor]:
        """Target and decoder's output, both (B, C, H, W), in the form that the distance takes."""
        target = batch.x
        if not target.is_floating_point():
            raise InputError(
                f"Reconstruct: the network's input is {target.dtype}, which no decoder can give; "
                "give floating point images, such as images.float() / 255"
            )
        output = self.decoder(activity.unpooled if self.before_pooling else activity.output)
        dtype = torch.promote_types(output.dtype, torch.float32)
        target, output = target.to(dtype), output.to(dtype)
        if self.distance == "bce":
            target = self.normalization.undo(target)
        if self.pixels:
            target = target.roll((self.pixels, self.pixels), (-2, -1))
        if output.shape[-2:] != target.shape[-2:]:
            target = F.adaptive_avg_pool2d(target, output.shape[-2:])
        return target, output

    def extra_repr(self) -> str:
        return f"distance={self.distance!r}, pixels={self.pixels}"


def _two_pixels(shift: object) -> bool:
    return (
        isinstance(shift, Sequence) and len(shift) == 2 and all(isinstance(s, int) for s in shift)
    )


def shift_at(i: int, blocks: int, first: int, last: int) -> int:
    """The number of pixels by which the target of block `i` of `blocks` is rolled."""
    return math.floor(between(i, blocks, first, last) + 0.5)
