"""Predict the patches below a patch: contrastive predictive coding, block by block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwise.arguments import at_least, checks_arguments
from layerwise.errors import InputError
from layerwise.heads.head import feature_maps
from layerwise.objectives.activity import Activity
from layerwise.objectives.batch import Batch
from layerwise.objectives.objective import Objective, Site


class InfoNCE(Objective):
    """Distinguish the patch k rows below from other patches, for several k; no labels are read.

    Löwe et al. 2019 (Greedy InfoMax, arXiv:1905.11786), eq. 4 and 5: the loss of contrastive
    predictive coding (van den Oord et al. 2018, arXiv:1807.03748) on every block separately. With
    z_rc the block's output at row r and column c of a grid, and X the set of the right patch and
    the negatives:

        f_k(z_{r+k,c}, z_rc) = exp(z_{r+k,c} W_k z_rc)
        mean over k, images, r and c of -log (f_k(z_{r+k,c}, z_rc) / sum_{z in X} f_k(z, z_rc))

    in nats. A patch is a position of the feature maps, which are averaged down to the grid. In a
    convolutional network the receptive fields of positions overlap. In the paper each patch is
    encoded separately, as in a network over patches: `models.basic_cnn(patch=16)`.

    Deviations: the loss is the mean over k, not the sum; the context is the patch alone, as in
    Greedy InfoMax, without the autoregressive network of contrastive predictive coding.

    Args:
        grid: number of rows and of columns of patches, to which feature maps are averaged down.
            None takes every position.
        steps: the largest k.
        skip: the number of smallest k that are left out: 1 if neighbouring patches overlap.
        negatives: number of other patches of the batch from which each prediction is distinguished,
            drawn uniformly with repetition; None for all patches of the batch.

    Raises:
        InputError: sizes below one, or `skip` not below `steps`; when it is built, a block without
            feature maps (C, H, W), or a grid with too few rows for `steps`.
    """

    @checks_arguments
    def __init__(
        self,
        grid: int | None = 4,
        steps: int = 2,
        skip: int = 0,
        negatives: int | None = None,
    ):
        super().__init__()
        at_least(1, "InfoNCE", grid=grid, steps=steps, negatives=negatives)
        if not 0 <= skip < steps:
            raise InputError(f"InfoNCE(skip={skip}, steps={steps}): give 0 <= skip < steps")
        self.grid, self.steps, self.skip, self.negatives = grid, steps, skip, negatives
        self.maps = nn.Sequential()
        self.predict_below = nn.ModuleList()  # W_k

    def build(self, site: Site) -> None:
        layers, (channels, height, width) = feature_maps(site.shape, "InfoNCE")
        rows, columns = (min(self.grid or side, side) for side in (height, width))
        if rows <= self.steps:
            raise InputError(
                f"InfoNCE(grid={self.grid}, steps={self.steps}): block {site.index} gives {height} "
                f"rows, a grid of {rows}, so no patch has another {self.steps} rows below; give at "
                f"most {rows - 1} steps, or a grid or images with more rows"
            )
        if (rows, columns) != (height, width):
            layers.append(nn.AdaptiveAvgPool2d((rows, columns)))
        self.maps = nn.Sequential(*layers)
        self.predict_below = nn.ModuleList(
            nn.Linear(channels, channels, bias=False) for _ in range(self.skip, self.steps)
        )

    @property
    def reads_input(self) -> bool:
        return False

    def forward(self, activity: Activity, batch: Batch) -> Tensor:
        h = activity.output
        z_BRCD = self.maps(h).permute(0, 2, 3, 1)  # R rows, C columns of the grid
        patches = z_BRCD.flatten(0, 2)
        number_BRC = torch.arange(len(patches), device=h.device).view(z_BRCD.shape[:3])
        losses = []
        for k, W in enumerate(self.predict_below, self.skip + 1):
            predicted = W(z_BRCD[:, :-k]).flatten(0, 2)
            losses.append(self._told_apart(predicted, patches, number_BRC[:, k:].flatten()))
        return torch.stack(losses).mean()

    def _told_apart(self, predicted: Tensor, patches: Tensor, right: Tensor) -> Tensor:
        """The mean loss, in nats, of distinguishing the right patches from others by f_k.

        Args:
            predicted: W_k z, (P, D).
            patches: all patches of the batch, (N, D).
            right: for each prediction the number of its patch, (P,).
        """
        dtype = torch.promote_types(predicted.dtype, torch.float32)
        predicted, patches = predicted.to(dtype), patches.to(dtype)
        # Autocast would round the logarithm of f_k to 8 bits.
        with torch.autocast(predicted.device.type, enabled=False):
            if self.negatives is None:
                return F.cross_entropy(predicted @ patches.T, right)
            drawn = torch.randint(
                len(patches) - 1, (len(right), self.negatives), device=right.device
            )
            drawn = drawn + (drawn >= right[:, None])  # any but the right one
            candidates = patches[torch.cat([right[:, None], drawn], 1)]
            log_f = (candidates * predicted[:, None]).sum(2)
            return (log_f.logsumexp(1) - log_f[:, 0]).mean()

    def extra_repr(self) -> str:
        return f"grid={self.grid}, steps={self.steps}, skip={self.skip}"
