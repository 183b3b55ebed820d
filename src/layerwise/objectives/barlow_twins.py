"""Make the features of two views of an image equal, and different features uncorrelated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerwise.arguments import checks_arguments
from layerwise.autocast import without_autocast
from layerwise.errors import InputError
from layerwise.heads.head import refuse_class
from layerwise.heads.projector import Normalized, Projector
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import Objective, Site


class BarlowTwins(Objective):
    """Make the features of two augmented views of an image equal, and different features
    uncorrelated; no labels are read.

    Zbontar et al. 2021 (arXiv:2103.03230), eq. 1 and 2; on every block by itself, Siddiqui et al.
    2023 (blockwise Barlow Twins, arXiv:2302.01647). With the projections of two views, each feature
    scaled to mean 0 and variance 1 over the batch, z and z', both (B, D):

        C = z^T z' / B,    L = sum_i (1 - C_ii)^2 + redundancy sum_{i != j} C_ij^2

    Views after the second are not read.

    Deviations: the projector is this library's, averaged down to `pool` positions, without
    BatchNorm and much smaller (8192 wide in the paper; blockwise, after a convolution that widens
    maps to 2048 channels); no noise is added to what a block passes on.

    Args:
        projector: recipe of the auxiliary network; its last step, to length 1, is left out.
        redundancy: lambda, the weight of different features.

    Raises:
        InputError: a negative weight; in a step, fewer than two augmented views.
    """

    @checks_arguments
    def __init__(self, projector: Projector = Projector(), redundancy: float = 0.0051):
        super().__init__()
        refuse_class(projector, "BarlowTwins(projector=...)")
        if not redundancy >= 0:
            raise InputError(f"BarlowTwins(redundancy={redundancy}): give at least 0")
        self.projector: nn.Module = nn.Identity()
        self.recipe, self.redundancy = projector, redundancy

    def build(self, site: Site) -> None:
        layers = self.recipe(site.shape)
        self.projector = layers[:-1] if isinstance(layers[-1], Normalized) else layers

    @property
    def needs_views(self) -> int:
        return 2

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        assert activity.augmented is not None
        return twins(self.projector(activity.augmented[:2].flatten(0, 1)), self.redundancy)

    def extra_repr(self) -> str:
        return f"redundancy={self.redundancy}"


def twins(z: Tensor, redundancy: float) -> Tensor:
    """The loss, (), of the projections of two views, (2 B, D), the second view after the first."""
    with without_autocast(z.device):
        z = z.to(torch.promote_types(z.dtype, torch.float32)).unflatten(0, (2, -1))
        z = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        C = z[0].T @ z[1] / z.shape[1]
        of_same = (1 - C.diagonal()).square().sum()
        return of_same + redundancy * (C.square().sum() - C.diagonal().square().sum())
