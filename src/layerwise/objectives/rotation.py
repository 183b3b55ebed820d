"""Predict how far the input was rotated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import checks_arguments
from layerwise.errors import InputError
from layerwise.heads import MLP, Head
from layerwise.heads.head import refuse_class
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import Objective, Site


@dataclass(frozen=True)
class Turned:
    """A view of images (B, C, H, W): rotated counter-clockwise by a number of quarter turns.

    Two objects with the same number are equal, so blocks that ask for the same view share its pass.
    """

    quarters: int

    def __call__(self, x: Tensor) -> Tensor:
        return torch.rot90(x, self.quarters, (-2, -1))


class Rotation(Objective):
    """Predict by how many quarter turns the network's input was rotated; no labels are read.

    Gidaris et al. 2018 (arXiv:1803.07728), eq. 2 and 3: the block sees every image in all
    rotations, and the loss is the cross-entropy, in nats, the mean over images and rotations.

    Deviation: each block has this task of its own (the paper trains one network end to end).

    Args:
        head: recipe of the auxiliary network, which gives one score for each of `turns`.
        turns: the rotations, in counter-clockwise quarter turns: two or more of 0 to 3, 0 first.

    Raises:
        InputError: other turns; when it is built, a network whose input is not an image (C, H, W),
            or is not square although a turn exchanges height and width.
    """

    @checks_arguments
    def __init__(
        self,
        head: Head = MLP(),
        turns: tuple[int, ...] = (0, 1, 2, 3),
    ):
        super().__init__()
        refuse_class(head, "Rotation(head=...)")
        if len(turns) < 2 or turns[0] != 0 or sorted({0, 1, 2, 3} & {*turns}) != sorted(turns):
            raise InputError(
                f"Rotation(turns={turns}): give at least two different numbers of quarter turns, "
                "0 to 3, and 0 first: the image as it is"
            )
        self.head: nn.Module = nn.Identity()
        self.recipe = head
        self.turns = tuple(turns)

    def build(self, site: Site) -> None:
        if len(site.input_shape) != 3:
            raise InputError(
                f"Rotation: the network takes {site.input_shape} for each sample, which is not an "
                "image (C, H, W) to rotate; leave this objective out"
            )
        _, height, width = site.input_shape
        if height != width and {1, 3} & {*self.turns}:
            raise InputError(
                f"Rotation(turns={self.turns}): the network takes {height}x{width} images, and a "
                f"quarter turn makes them {width}x{height}; give turns=(0, 2), or square images"
            )
        self.head = self.recipe(site.shape, (len(self.turns),))

    @property
    def views(self) -> tuple[Turned, ...]:
        return tuple(Turned(quarters) for quarters in self.turns[1:])

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        h = activity.output
        # One pass of the head: its BatchNorm must see all rotations together.
        logits = self.head(torch.cat([h, *(activity.views[view] for view in self.views)]))
        turn = torch.arange(len(self.turns), device=h.device).repeat_interleave(len(h))
        return F.cross_entropy(logits, turn)

    def extra_repr(self) -> str:
        return f"turns={self.turns}"
