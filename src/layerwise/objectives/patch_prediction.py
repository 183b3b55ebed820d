"""Base class of objectives that predict patches of an image from other patches."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from layerwise.arguments import at_least
from layerwise.errors import InputError
from layerwise.heads.head import feature_maps
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import Objective, Site

TURNS = (0, 2, 1, 3)  # quarter turns of the grid that bring down, up, left, right to down


class PatchPrediction(Objective):
    """Base class of objectives that tell the patch k rows below a patch from other patches, for
    several k. A patch is a position of the block's output, averaged down to a grid.

    Args:
        grid: number of rows and of columns of patches. None takes every position.
        steps: the largest k.
        skip: the number of smallest k that are left out.
        directions: 1 predicts downwards, 2 also upwards, 4 also to the right and to the left.

    Raises:
        InputError: sizes below one, `skip` not below `steps`, other directions; when it is built,
            a block without feature maps (C, H, W), or a grid that is too small for `steps`.
    """

    def __init__(self, grid: int | None, steps: int, skip: int, directions: int = 1):
        super().__init__()
        name = type(self).__name__
        at_least(1, name, grid=grid, steps=steps)
        if not 0 <= skip < steps:
            raise InputError(f"{name}(skip={skip}, steps={steps}): give 0 <= skip < steps")
        if directions not in (1, 2, 4):
            raise InputError(f"{name}(directions={directions}): give 1, 2 or 4")
        self.grid, self.steps, self.skip, self.directions = grid, steps, skip, directions
        self.maps = nn.Sequential()
        self.predict_below = nn.ModuleList()  # W_k of every direction

    @abstractmethod
    def told_apart(self, predicted: Tensor, patches: Tensor, right: Tensor) -> Tensor:
        """The mean loss, (), of telling the right patches from others.

        Args:
            predicted: W_k c, (P, D).
            patches: all patches of the batch, (N, D).
            right: for each prediction the number of its patch, (P,).
        """

    def context_of(self, direction: int, z: Tensor) -> Tensor:
        """What predictions are made from, in the shape of the patches z, (B, R, C, D); by default
        each patch alone. Row r must not depend on the rows after it."""
        return z

    def build(self, site: Site) -> None:
        name = type(self).__name__
        layers, (channels, height, width) = feature_maps(site.shape, name)
        rows, columns = (min(self.grid or side, side) for side in (height, width))
        for side, of, what in ((rows, height, "rows"), (columns, width, "columns")):
            if side <= self.steps and (what == "rows" or self.directions == 4):
                raise InputError(
                    f"{name}(grid={self.grid}, steps={self.steps}): block {site.index} gives {of} "
                    f"{what}, a grid of {side}, so no patch has another {self.steps} {what} away; "
                    f"give at most {side - 1} steps, or a grid or images with more {what}"
                )
        if (rows, columns) != (height, width):
            layers.append(nn.AdaptiveAvgPool2d((rows, columns)))
        self.maps = nn.Sequential(*layers)
        self.predict_below = nn.ModuleList(
            nn.Linear(channels, channels, bias=False)
            for _ in range(self.directions * (self.steps - self.skip))
        )

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        z_BRCD = self.maps(activity.output).permute(0, 2, 3, 1)  # R rows, C columns of the grid
        patches = z_BRCD.flatten(0, 2)
        number_BRC = torch.arange(len(patches), device=patches.device).view(z_BRCD.shape[:3])
        losses, W = [], iter(self.predict_below)
        for direction in range(self.directions):
            turned = z_BRCD.rot90(TURNS[direction], (1, 2))
            number = number_BRC.rot90(TURNS[direction], (1, 2))
            c_BRCD = self.context_of(direction, turned)
            for k in range(self.skip + 1, self.steps + 1):
                predicted = next(W)(c_BRCD[:, :-k]).flatten(0, 2)
                losses.append(self.told_apart(predicted, patches, number[:, k:].flatten()))
        return torch.stack(losses).mean()

    def extra_repr(self) -> str:
        return f"grid={self.grid}, steps={self.steps}, skip={self.skip}"


def others(patches: Tensor, right: Tensor, count: int) -> Tensor:
    """For each prediction, `count` patches of the batch drawn uniformly with repetition from all
    but the right one, (P, count, D)."""
    drawn = torch.randint(len(patches) - 1, (len(right), count), device=right.device)
    return patches[drawn + (drawn >= right[:, None])]
