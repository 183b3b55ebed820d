"""Fill in holes that were cut out of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import at_least, checks_arguments
from layerwise.errors import InputError, choices
from layerwise.heads.decoder import Decoder, Transposed
from layerwise.heads.head import refuse_class
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import Objective, Site

MIX = (0x1B873593, 0x2545F491, 0x27D4EB2F)  # odd numbers below 2^30


@dataclass(frozen=True)
class Holes:
    """A view of images (B, C, H, W) with holes of value 0, the mean of normalised images.

    With `number` 0 there is one hole, the middle half of height and width. Otherwise there are
    `number` holes, each of a quarter of height and width. Their places depend only on the pixels of
    the image: every process, every block and a resumed run cut the same holes, whatever random
    numbers they draw. Another crop of the same image has other holes.

    Two objects with the same number are equal, so blocks that ask for the same view share its pass.
    """

    number: int = 0  # 0: one hole in the middle

    def __call__(self, x: Tensor) -> Tensor:
        return x.masked_fill(self.mask(x), 0)

    def mask(self, x: Tensor) -> Tensor:
        """A mask that is True in the holes, (B, 1, H, W)."""
        height, width = x.shape[-2:]
        if not self.number:
            tall, wide = max(1, height // 2), max(1, width // 2)
            top, left = (height - tall) // 2, (width - wide) // 2
            inside = x.new_zeros(len(x), 1, height, width, dtype=torch.bool)
            inside[:, :, top : top + tall, left : left + wide] = True
            return inside
        tall, wide = max(1, height // 4), max(1, width // 4)
        drawn_BN2 = _drawn(x, 2 * self.number).unflatten(1, (self.number, 2))
        top_BN = drawn_BN2[..., 0] % (height - tall + 1)
        left_BN = drawn_BN2[..., 1] % (width - wide + 1)
        row_H = torch.arange(height, device=x.device)
        column_W = torch.arange(width, device=x.device)
        rows_BNH = (row_H >= top_BN[..., None]) & (row_H < top_BN[..., None] + tall)
        columns_BNW = (column_W >= left_BN[..., None]) & (column_W < left_BN[..., None] + wide)
        return (rows_BNH[..., :, None] & columns_BNW[..., None, :]).any(1, keepdim=True)


def _drawn(x: Tensor, count: int) -> Tensor:
    """Pseudo-random integers from 0 to 2^24 - 1, (B, count), computed from each image's bits by
    integer arithmetic, whose sums are exact in any order."""
    bits = x.detach().float().contiguous().view(torch.int32).flatten(1).long()
    place = torch.arange(bits.shape[1], device=x.device)
    seed_B = (_mixed(bits + place * MIX[0])).sum(1)
    number = torch.arange(1, count + 1, device=x.device)
    return _mixed(seed_B[:, None] + number * MIX[1]) & 0xFFFFFF


def _mixed(n: Tensor) -> Tensor:
    """A 32-bit hash of each integer."""
    for factor in MIX:
        n = n & 0xFFFFFFFF
        n = (n ^ (n >> 16)) * factor
    n = n & 0xFFFFFFFF
    return n ^ (n >> 15)


class Inpaint(Objective):
    """Predict the pixels in holes that were cut out of the image; no labels are read.

    Pathak et al. 2016 (arXiv:1604.07379), eq. 1. With M = 1 in the holes and 0 elsewhere, the block
    sees (1 - M) x, as a view of its own, and minimises

        mean of (x - decoder)^2 over the pixels with M = 1 and all channels

    The hole is the central quarter of the area; or there are several holes, each a sixteenth of the
    area, at random places that may overlap (`Holes`).

    Deviations: the loss is the mean over the holes, not the sum, so that its weight does not depend
    on their size; it is the reconstruction loss without the adversarial loss, and without the
    border where the prediction overlaps the visible image and counts ten times.

    Args:
        decoder: recipe of the auxiliary network. If its output has fewer pixels than the image,
            image and holes are averaged to the same resolution.
        region: "center" or "random".
        holes: number of holes, with "random".

    Raises:
        InputError: another region; fewer than one hole; when it is built, a network whose input is
            not an image (C, H, W).
    """

    @checks_arguments
    def __init__(
        self,
        decoder: Decoder = Transposed(),
        region: Literal["center", "random"] = "center",
        holes: int = 4,
    ):
        super().__init__()
        refuse_class(decoder, "Inpaint(decoder=...)")
        if region not in ("center", "random"):
            known = ("center", "random")
            raise InputError(f"Inpaint(region={region!r}): {choices(str(region), known)}")
        at_least(1, "Inpaint", holes=holes)
        self.decoder: nn.Module = nn.Identity()
        self.recipe = decoder
        self.region = region
        self.holes = Holes() if region == "center" else Holes(holes)

    def build(self, site: Site) -> None:
        if len(site.input_shape) != 3:
            raise InputError(
                f"Inpaint: the network takes {site.input_shape} for each sample, which is not an "
                "image (C, H, W) to cut holes in; leave this objective out"
            )
        self.decoder = self.recipe(site.shape, site.input_shape)

    @property
    def views(self) -> tuple[Holes, ...]:
        return (self.holes,)

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        target, mask, output = self._decoded(activity, batch)
        error = (mask * (target - output).square()).sum()
        return error / (mask.sum() * target.shape[1])

    def illustrate(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images, and the images with predicted pixels in the holes, both (B, C, H, W)."""
        target, mask, output = self._decoded(activity, batch)
        return target, torch.lerp(target, output, mask)

    def _decoded(self, activity: Activity, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The images, the mask of holes and the decoder's output, in float32 or more."""
        output = self.decoder(activity.views[self.holes])
        dtype = torch.promote_types(output.dtype, torch.float32)
        target, output = batch.x.to(dtype), output.to(dtype)
        mask = self.holes.mask(batch.x).to(dtype)
        if output.shape[-2:] != target.shape[-2:]:
            target = F.adaptive_avg_pool2d(target, output.shape[-2:])
            mask = F.adaptive_avg_pool2d(mask, output.shape[-2:])
        return target, mask, output

    def extra_repr(self) -> str:
        return f"region={self.region!r}"
