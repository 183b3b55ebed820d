"""Predict the patches below from a patch: contrastive predictive coding, block by block."""

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
    """Tell the patch k rows below from other patches, for several k: no labels are read.

    Greedy InfoMax (Löwe et al. 2019, arXiv:1905.11786), eq. 4 and 5, the loss of contrastive
    predictive coding (van den Oord et al. 2018, arXiv:1807.03748) on every block by itself. z_rc is
    the block's output at row r and column c of a grid, X that patch and the negatives:

        f_k(z_{r+k,c}, z_rc) = exp(z_{r+k,c} W_k z_rc)
        mean over k, images, r and c of -log (f_k(z_{r+k,c}, z_rc) / sum_{z in X} f_k(z, z_rc))

    nats. A patch is a position of the feature maps, averaged down to the grid. Positions of a
    convolutional network see each other's pixels; in the paper each patch is encoded by itself,
    which a network over patches does: `models.basic_cnn(patch=16)`. Deviations: the mean over k,
    not the sum; the context is the patch alone, as in Greedy InfoMax, without contrastive
    predictive coding's autoregressive network.

    Args:
        grid: rows and columns of patches; feature maps are averaged down to as many. Null takes
            every position.
        steps: the largest k.
        skip: leave out k = 1 to this: 1 where neighbouring patches overlap.
        negatives: how many other patches of the batch each prediction is told from, drawn uniformly
            with repetition; null for all there are.

    Raises:
        InputError: when it is built, the block gives no feature maps (C, H, W), or a grid of too
            few rows for `steps`.
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
                f"rows, a grid of {rows}, and no patch has one {self.steps} rows below; give at "
                f"most {rows - 1} steps, or images, or a grid, with more rows"
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
        """Mean nats of telling patch `right` from others by f_k; predicted (P, D), patches (N, D),
        right (P,)."""
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
